"""Answers that came when their connection had been given up: kept, verified, and only then believed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from temporalio import activity

from activities.answers import Answer
from activities.chains import install_chains
from activities.client_secrets import client_refused
from activities.clocks import living_from
from activities.failures import grant_news
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.provider_activities import ProviderActivities
from activities.records import closed, connection_of, record, settled
from activities.single_use import Ending, Use
from activities.transfer import end_consent
from activities.unwanted import turned_away
from activities.wellbeing import note_recovery
from evergrant_server.core.account import FollowUp
from evergrant_server.core.attempt import Attempt, AttemptKind, LateAnswer, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import Consent, ConsentStatus
from evergrant_server.core.errors import FAILURES, Code, Failure, Kind
from evergrant_server.core.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.late import WANTED
from evergrant_server.core.late_messages import SIGNAL_ANSWER_CAME_LATE, AnswerCameLate, VerifyLateAnswer
from evergrant_server.core.messages import ActivityName, Call, GrantNews
from evergrant_server.core.outbox import signal_to
from evergrant_server.store import Tx
from providers.replies import read_tokens


async def keep_late(tx: Tx, order: Call, use: Use, tokens: TokenSet, at: datetime) -> None:
    """Keep the tokens sealed and tell the workflow, in the transaction that finds them late."""
    attempt = use.attempt
    late = LateAnswer(
        tenant=attempt.tenant,
        attempt_id=attempt.id,
        connection_id=attempt.connection_id,
        from_generation=attempt.from_generation,
        asked_at=attempt.first_opened_at,
        came_at=at,
    )
    if not await tx.late_answers.keep(late, tokens):
        return  # replayed: it is kept already
    await record(
        tx,
        order,
        AuditAction.ANSWER_CAME_LATE,
        at,
        attempt=attempt.id,
        from_generation=attempt.from_generation,
        sends=attempt.sends,
        sent_by=attempt.send_by.isoformat(),
    )
    await tell_of_late(tx, order, attempt, at)


async def tell_of_late(tx: Tx, order: Call, attempt: Attempt, at: datetime) -> None:
    """Its workflow asks then what holds, and has it verified where nobody has yet."""
    told = AnswerCameLate(attempt_id=attempt.id, asked=order.asked)
    message = signal_to(attempt.tenant, attempt.connection_id, SIGNAL_ANSWER_CAME_LATE, told, at)
    await tx.outbox.add(message)


@dataclass(frozen=True)
class _Kept:
    """A late answer's tokens, and what else is known of what it answered."""

    asked_at: datetime
    tokens: TokenSet
    consent: Consent | None  # whose code, or device code, was spent; None: a refresh token

    @property
    def first(self) -> bool:
        """It answered a consent: nothing of the grant before is part of what came."""
        return self.consent is not None

    @property
    def origin(self) -> Origin:
        return Origin.NEW if self.first else Origin.REFRESH

    def scopes(self, held: Holdings) -> tuple[str, ...]:
        """What was granted: a refresh may ask for no more (RFC 6749 section 6)."""
        if self.tokens.scopes is not None:
            return self.tokens.scopes
        if self.consent is not None:
            return self.consent.scopes
        return held.grant.scopes if held.grant is not None else held.connection.requested_scopes

    def facts(self, before: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.tokens.metadata if self.first else {**before, **self.tokens.metadata}

    def verified_by(self, tokens: TokenSet, since: datetime) -> TokenSet:
        """What a refresh brought, with what only the answer to the code or the earlier refresh said."""
        late = self.tokens
        refresh_expires_in = tokens.refresh_expires_in
        if refresh_expires_in is None and late.refresh_expires_in is not None:
            refresh_expires_in = late.refresh_expires_in - (since - self.asked_at).total_seconds()
        # no refresh token in the reply: the one that was just used stays good (RFC 6749 section 6)
        kept = {
            "refresh_token": tokens.refresh_token or late.refresh_token,
            "refresh_expires_in": refresh_expires_in,
            "id_token": tokens.id_token or late.id_token,
            "scopes": tokens.scopes or late.scopes,
            "metadata": late.metadata | tokens.metadata,
        }
        return tokens.model_copy(update=kept)

    def connection(self, after: Connection, held: Holdings) -> Connection:
        """As after any consent: what was consented to is asked for next, and accounts are looked up."""
        if self.consent is None:
            return after
        looking = FollowUp.LOOKING if held.spec.post_auth and after.flow.bears else None
        changes = {
            "requested_scopes": self.consent.scopes,
            "chain_scopes": after.chain_scopes | self.consent.chain_scopes,
            "follow_up": looking,
        }
        return after.model_copy(update=changes)


class LateAnswerActivities(ProviderActivities):
    """Spends the late answer's refresh token by the same protocol: a success is the proof."""

    @activity.defn(name=ActivityName.VERIFY_LATE_ANSWER)
    async def verify_late_answer(self, order: VerifyLateAnswer) -> GrantNews:
        """Says what holds now. A failure of kind ReconnectNeeded means that it can't be believed."""
        async with heartbeats():
            try:
                news = await self._tried(order)
                return news if _undecided(news) else await self._and_next(order, news)
            except Failure as failure:
                return grant_news(failure)

    async def _tried(self, order: VerifyLateAnswer) -> GrantNews:
        held = (await self._holder.take(order.tenant, order.connection_id)).believed()
        async with self._store.read() as tx:
            late = await tx.late_answers.get(order.tenant, order.attempt_id)
        if late is None or not _wanted(held.connection, late):
            return await self._moot(order)
        ask = partial(self._verify, order, await self._kept(late))
        return await self._either_secret.asked(order, held, ask)

    async def _and_next(self, order: VerifyLateAnswer, news: GrantNews) -> GrantNews:
        """This one is done with: the workflow knows one at a time, and is told of another that is kept."""
        async with self._store.read() as tx:
            connection = await connection_of(tx, order)
            kept = await tx.late_answers.of(order.tenant, order.connection_id)
        others = (
            it.attempt_id for it in kept if it.attempt_id != order.attempt_id and _wanted(connection, it)
        )
        return news.model_copy(update={"late_next": next(others, None)})

    async def answered(self, use: Use, answer: Answer) -> GrantNews:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = VerifyLateAnswer.model_validate(answer.order)
        held = (await self._holder.take(order.tenant, order.connection_id)).believed()
        async with self._store.read() as tx:
            late = await tx.late_answers.get(order.tenant, order.attempt_id)
        if late is None:
            return await self._moot(order)
        ending = self._ending(order, held, await self._kept(late), lambda: answer.came_at)
        return await self._single_use.conclude(use, answer.reply, ending)

    async def _kept(self, late: LateAnswer) -> _Kept:
        async with self._store.read() as tx:
            tokens = await tx.late_answers.tokens(late)
            answered = await tx.attempts.get(late.tenant, late.attempt_id)
            consent_id = answered.credential if answered is not None else ""
            consent = await tx.consents.get(late.tenant, ConsentId(consent_id)) if consent_id else None
        return _Kept(late.asked_at, tokens, consent)

    async def _verify(self, order: VerifyLateAnswer, late: _Kept, held: Holdings) -> GrantNews:
        token, flow = late.tokens.refresh_token, held.connection.flow
        if token is None or flow.mints or not held.spec.refresh_supported:
            return await self._refused(order, Code.CONSENT_REQUIRED)  # nothing to verify it with
        held = held.knowing(late.facts(held.facts))
        try:
            use = await self._single_use.begin(
                AttemptKind.LATE_ANSWER,
                held.connection,
                held.integration.refresh,
                token_valid=False,
                credential=order.attempt_id,
            )
        except Failure as failure:
            if failure.code is not Code.OUTCOME_UNKNOWN:
                raise
            return await self._refused(order, failure.code)
        return await self._single_use.spend(
            use,
            order,
            send=lambda check: self._sender.refresh(
                held.spec,
                held.endpoints,
                held.client,
                refresh_token=token,
                scopes=late.scopes(held),
                redirect_uri=held.redirect_uri,
                params=held.params,
                flow=flow,
                resources=held.resources,
                before_send=check,
            ),
            ending=self._ending(order, held, late, self._clock.now),
        )

    def _ending(
        self, order: VerifyLateAnswer, held: Holdings, late: _Kept, came_at: Callable[[], datetime]
    ) -> Ending[GrantNews]:
        scopes = late.scopes(held)
        return Ending(
            judge=lambda reply: read_tokens(
                held.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at()
            ),
            commit=partial(self._adopt, order, held, late),
            settle=partial(self._settle, order),
        )

    async def _adopt(
        self, order: VerifyLateAnswer, held: Holdings, late: _Kept, use: Use, tokens: TokenSet
    ) -> GrantNews:
        """It works: the connection is back. What it held before is replaced whole."""
        since = living_from(self._clock, use.attempt, tokens)
        tokens = late.verified_by(tokens, since)

        async def adopt(tx: Tx) -> GrantNews | None:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state.final:
                return None
            if current.generation != use.attempt.from_generation:
                await closed(tx, use.attempt, Outcome.SUPERSEDED, now)
                return await self._what_holds(tx, current, held)
            after = late.connection(current.granted(now), held)
            known = await tx.grants.get(order.tenant, order.connection_id)  # an account may be chosen by now
            grant = Grant.from_tokens(
                tokens,
                generation=after.generation,
                requested=after.requested_scopes,
                at=since,
                before=None if late.first else known,
            )
            saved = await tx.grants.install(
                after, tokens, grant, origin=late.origin, expected=current.revision
            )
            # the answer was to the code, and is good: so are the chains that came with it
            await install_chains(tx, self._store.ring, order, saved, late.tokens, since, now)
            await closed(tx, use.attempt, Outcome.INSTALLED, now)
            detail: dict[str, object] = {"generation": grant.generation, "late_attempt": order.attempt_id}
            if late.consent is not None:
                await self._given(tx, late.consent)
                detail |= {"scopes": list(grant.scopes), "consent": late.consent.id}
                await record(tx, order, AuditAction.GRANT_INSTALLED, now, **detail)
                await note_recovery(tx, order, current, now)
            elif current.state is not State.REVOKING:
                await record(tx, order, AuditAction.CONNECTION_RECOVERED, now, **detail)
            return held.news(saved, grant)

        news = await settled(self._store, adopt, use.keys)
        if news is not None:
            return news
        return await turned_away(self._store, self._clock, self._sender, order, held, use, tokens)

    @staticmethod
    async def _given(tx: Tx, consent: Consent) -> None:
        """It was written off when its code was refused a second time."""
        current = await tx.consents.get(consent.tenant, consent.id)
        if current is not None and current.status is not ConsentStatus.DONE:
            await end_consent(tx, current, ConsentStatus.DONE)

    async def _settle(
        self, order: VerifyLateAnswer, use: Use, failure: Failure, outcome: Outcome | None
    ) -> GrantNews:
        async def close(tx: Tx) -> None:
            if outcome is not None:
                await closed(tx, use.attempt, outcome, self._clock.now())

        await settled(self._store, close)
        if failure.kind is Kind.RECONNECT_NEEDED:
            return await self._refused(order, failure.code)
        return GrantNews(
            attempt_id=use.attempt.id,
            failure=failure.code,
            retry_after=failure.retry_after,
            client_refused=client_refused(failure),
        )

    async def _refused(self, order: VerifyLateAnswer, code: Code) -> GrantNews:
        """As dead as the rest: its tokens go, no other late answer's, and the connection stays as it is."""

        async def refuse(tx: Tx) -> GrantNews:
            await tx.late_answers.drop(order.tenant, order.connection_id, order.attempt_id)
            detail = {"attempt": order.attempt_id, "verified": False, "reason": code}
            await record(tx, order, AuditAction.ANSWER_CAME_LATE, self._clock.now(), **detail)
            return GrantNews(failure=code)

        return await settled(self._store, refuse)

    async def _moot(self, order: VerifyLateAnswer) -> GrantNews:
        """Verified by an earlier try, or overtaken by another grant or a revocation."""
        held = await self._holder.take(order.tenant, order.connection_id)
        async with self._store.read() as tx:
            holds = await self._what_holds(tx, held.connection, held)
        return holds.model_copy(update={"over": holds.failure is not None})

    @staticmethod
    async def _what_holds(tx: Tx, current: Connection, held: Holdings) -> GrantNews:
        grant = await tx.grants.get(current.tenant, current.id)
        if current.state is State.ACTIVE and grant is not None:
            return held.news(current, grant)
        if current.state is State.REVOKING:
            return GrantNews(state=State.REVOKING)
        return GrantNews(state=current.state, failure=current.reason or Code.CONSENT_REQUIRED)


def _wanted(connection: Connection, late: LateAnswer) -> bool:
    return connection.state in WANTED and connection.generation == late.from_generation


def _undecided(news: GrantNews) -> bool:
    """It brought a grant, or nothing that says whether it is any good."""
    if news.failure is None:
        return True
    return not news.over and FAILURES[news.failure].kind is not Kind.RECONNECT_NEEDED
