"""Answers that came when their connection had been given up: kept, verified, and only then believed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from temporalio import activity

from activities.grants.client_secrets import is_client_refused
from activities.grants.import_export import end_consent
from activities.grants.orphaned_tokens import revoke_orphaned_tokens
from activities.grants.token_slots import install_further_slots
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import OutcomeHandler, SingleUseAttempt
from activities.support.clocks import obtained_at
from activities.support.connection_health import record_recovery
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_activities import ProviderActivities
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.late_tokens import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.connection import ActivityName, ConnectionCall, GrantResult
from evergrant_server.core.messages.late_tokens import (
    SIGNAL_LATE_TOKENS_RECEIVED,
    LateTokensReceived,
    VerifyLateTokens,
)
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome, LateTokens
from evergrant_server.store import Transaction
from providers.responses.token_response import read_tokens


async def keep_late_tokens(
    tx: Transaction, order: ConnectionCall, use: SingleUseAttempt, tokens: TokenSet, at: datetime
) -> None:
    """Keep the tokens sealed and tell the workflow, in the transaction that finds them late."""
    attempt = use.row
    late = LateTokens(
        tenant=attempt.tenant,
        attempt_id=attempt.id,
        connection_id=attempt.connection_id,
        from_generation=attempt.from_generation,
        asked_at=attempt.first_opened_at,
        came_at=at,
    )
    if not await tx.late_tokens.add(late, tokens):
        return  # replayed: it is kept already
    await append_audit(
        tx,
        order,
        AuditAction.LATE_TOKENS_RECEIVED,
        at,
        attempt=attempt.id,
        from_generation=attempt.from_generation,
        sends=attempt.sends,
        sent_by=attempt.send_by.isoformat(),
    )
    await signal_late_tokens(tx, order, attempt, at)


async def signal_late_tokens(tx: Transaction, order: ConnectionCall, attempt: Attempt, at: datetime) -> None:
    """Its workflow asks then what holds, and has it verified where nobody has yet."""
    told = LateTokensReceived(attempt_id=attempt.id, context=order.context)
    message = signal_message(attempt.tenant, attempt.connection_id, SIGNAL_LATE_TOKENS_RECEIVED, told, at)
    await tx.outbox.add(message)


@dataclass(frozen=True)
class _LateTokens:
    """A late answer's tokens, and what else is known of what it answered."""

    asked_at: datetime
    tokens: TokenSet
    consent: Consent | None  # whose code, or device code, was spent; None: a refresh token

    @property
    def is_first_grant(self) -> bool:
        """It answered a consent: nothing of the grant before is part of what came."""
        return self.consent is not None

    @property
    def origin(self) -> Origin:
        return Origin.NEW if self.is_first_grant else Origin.REFRESH

    def scopes(self, held: ProviderContext) -> tuple[str, ...]:
        """What was granted: a refresh may ask for no more (RFC 6749 section 6)."""
        if self.tokens.scopes is not None:
            return self.tokens.scopes
        if self.consent is not None:
            return self.consent.scopes
        return held.grant.scopes if held.grant is not None else held.connection.requested_scopes

    def metadata(self, before: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.tokens.metadata if self.is_first_grant else {**before, **self.tokens.metadata}

    def merged_with(self, tokens: TokenSet, since: datetime) -> TokenSet:
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

    def applied_to(self, after: Connection, held: ProviderContext) -> Connection:
        """As after any consent: what was consented to is asked for next, and accounts are looked up."""
        if self.consent is None:
            return after
        looking = FollowUp.LOOKING_UP if held.spec.post_auth and after.flow.is_bearer else None
        changes = {
            "requested_scopes": self.consent.scopes,
            "chain_scopes": after.chain_scopes | self.consent.chain_scopes,
            "follow_up": looking,
        }
        return after.model_copy(update=changes)


class LateTokenActivities(ProviderActivities):
    """Spends the late answer's refresh token by the same protocol: a success is the proof."""

    @activity.defn(name=ActivityName.VERIFY_LATE_TOKENS)
    async def verify_late_tokens(self, order: VerifyLateTokens) -> GrantResult:
        """Says what holds now. A failure of kind ReconnectNeeded means that it can't be believed."""
        async with heartbeating():
            try:
                news = await self._verify_once(order)
                return news if _is_undecided(news) else await self._with_next(order, news)
            except Failure as failure:
                return failed_grant_result(failure)

    async def _verify_once(self, order: VerifyLateTokens) -> GrantResult:
        held = (await self._contexts.load(order.tenant, order.connection_id)).without_staged_definition()
        async with self._store.read() as tx:
            late = await tx.late_tokens.get(order.tenant, order.attempt_id)
        if late is None or not _is_pending(held.connection, late):
            return await self._already_decided(order)
        ask = partial(self._verify, order, await self._load_tokens(late))
        return await self._client_secrets.try_each(order, held, ask)

    async def _with_next(self, order: VerifyLateTokens, news: GrantResult) -> GrantResult:
        """This one is done with: the workflow knows one at a time, and is told of another that is kept."""
        async with self._store.read() as tx:
            connection = await load_connection(tx, order)
            kept = await tx.late_tokens.of_connection(order.tenant, order.connection_id)
        others = (
            it.attempt_id for it in kept if it.attempt_id != order.attempt_id and _is_pending(connection, it)
        )
        return news.model_copy(update={"next_late_attempt": next(others, None)})

    async def replay(self, use: SingleUseAttempt, answer: JournaledReply) -> GrantResult:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = VerifyLateTokens.model_validate(answer.request)
        held = (await self._contexts.load(order.tenant, order.connection_id)).without_staged_definition()
        async with self._store.read() as tx:
            late = await tx.late_tokens.get(order.tenant, order.attempt_id)
        if late is None:
            return await self._already_decided(order)
        ending = self._outcome_handler(order, held, await self._load_tokens(late), lambda: answer.came_at)
        return await self._single_use.conclude(use, answer.reply, ending)

    async def _load_tokens(self, late: LateTokens) -> _LateTokens:
        async with self._store.read() as tx:
            tokens = await tx.late_tokens.tokens(late)
            answered = await tx.attempts.get(late.tenant, late.attempt_id)
            consent_id = answered.credential if answered is not None else ""
            consent = await tx.consents.get(late.tenant, ConsentId(consent_id)) if consent_id else None
        return _LateTokens(late.asked_at, tokens, consent)

    async def _verify(self, order: VerifyLateTokens, late: _LateTokens, held: ProviderContext) -> GrantResult:
        token, flow = late.tokens.refresh_token, held.connection.flow
        if token is None or flow.is_client_grant or not held.spec.refresh_supported:
            return await self._drop_refused(order, ErrorCode.CONSENT_REQUIRED)  # nothing to verify it with
        held = held.with_facts(late.metadata(held.facts))
        try:
            use = await self._single_use.open(
                AttemptKind.LATE_TOKENS,
                held.connection,
                held.integration.refresh,
                token_valid=False,
                credential=order.attempt_id,
            )
        except Failure as failure:
            if failure.code is not ErrorCode.OUTCOME_UNKNOWN:
                raise
            return await self._drop_refused(order, failure.code)
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
            ending=self._outcome_handler(order, held, late, self._clock.now),
        )

    def _outcome_handler(
        self,
        order: VerifyLateTokens,
        held: ProviderContext,
        late: _LateTokens,
        came_at: Callable[[], datetime],
    ) -> OutcomeHandler[GrantResult]:
        scopes = late.scopes(held)
        return OutcomeHandler(
            judge=lambda reply: read_tokens(
                held.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at()
            ),
            commit=partial(self._install_tokens, order, held, late),
            fail=partial(self._record_failure, order),
        )

    async def _install_tokens(
        self,
        order: VerifyLateTokens,
        held: ProviderContext,
        late: _LateTokens,
        use: SingleUseAttempt,
        tokens: TokenSet,
    ) -> GrantResult:
        """It works: the connection is back. What it held before is replaced whole."""
        since = obtained_at(self._clock, use.row, tokens)
        tokens = late.merged_with(tokens, since)

        async def adopt(tx: Transaction) -> GrantResult | None:
            now = self._clock.now()
            current = await load_connection(tx, order)
            if current.state.is_final:
                return None
            if current.generation != use.row.from_generation:
                await close_attempt(tx, use.row, AttemptOutcome.SUPERSEDED, now)
                return await self._stored_result(tx, current, held)
            after = late.applied_to(current.granted(now), held)
            known = await tx.grants.get(order.tenant, order.connection_id)  # an account may be chosen by now
            grant = Grant.from_tokens(
                tokens,
                generation=after.generation,
                requested=after.requested_scopes,
                at=since,
                before=None if late.is_first_grant else known,
            )
            saved = await tx.grants.install(
                after, tokens, grant, origin=late.origin, expected=current.revision
            )
            # the answer was to the code, and is good: so are the chains that came with it
            await install_further_slots(tx, self._store.ring, order, saved, late.tokens, since, now)
            await close_attempt(tx, use.row, AttemptOutcome.INSTALLED, now)
            detail: dict[str, object] = {"generation": grant.generation, "late_attempt": order.attempt_id}
            if late.consent is not None:
                await self._complete_consent(tx, late.consent)
                detail |= {"scopes": list(grant.scopes), "consent": late.consent.id}
                await append_audit(tx, order, AuditAction.GRANT_INSTALLED, now, **detail)
                await record_recovery(tx, order, current, now)
            elif current.state is not LifecycleState.REVOKING:
                await append_audit(tx, order, AuditAction.CONNECTION_RECOVERED, now, **detail)
            return held.grant_result(saved, grant)

        news = await commit_with_retries(self._store, adopt, use.keys)
        if news is not None:
            return news
        return await revoke_orphaned_tokens(self._store, self._clock, self._sender, order, held, use, tokens)

    @staticmethod
    async def _complete_consent(tx: Transaction, consent: Consent) -> None:
        """It was written off when its code was refused a second time."""
        current = await tx.consents.get(consent.tenant, consent.id)
        if current is not None and current.status is not ConsentStatus.DONE:
            await end_consent(tx, current, ConsentStatus.DONE)

    async def _record_failure(
        self, order: VerifyLateTokens, use: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        async def close(tx: Transaction) -> None:
            if outcome is not None:
                await close_attempt(tx, use.row, outcome, self._clock.now())

        await commit_with_retries(self._store, close)
        if failure.kind is FailureKind.RECONNECT_NEEDED:
            return await self._drop_refused(order, failure.code)
        return GrantResult(
            attempt_id=use.row.id,
            failure=failure.code,
            retry_after=failure.retry_after,
            client_refused=is_client_refused(failure),
        )

    async def _drop_refused(self, order: VerifyLateTokens, code: ErrorCode) -> GrantResult:
        """As dead as the rest: its tokens go, no other late answer's, and the connection stays as it is."""

        async def refuse(tx: Transaction) -> GrantResult:
            await tx.late_tokens.delete(order.tenant, order.connection_id, order.attempt_id)
            detail = {"attempt": order.attempt_id, "verified": False, "reason": code}
            await append_audit(tx, order, AuditAction.LATE_TOKENS_RECEIVED, self._clock.now(), **detail)
            return GrantResult(failure=code)

        return await commit_with_retries(self._store, refuse)

    async def _already_decided(self, order: VerifyLateTokens) -> GrantResult:
        """Verified by an earlier try, or overtaken by another grant or a revocation."""
        held = await self._contexts.load(order.tenant, order.connection_id)
        async with self._store.read() as tx:
            holds = await self._stored_result(tx, held.connection, held)
        return holds.model_copy(update={"consent_over": holds.failure is not None})

    @staticmethod
    async def _stored_result(tx: Transaction, current: Connection, held: ProviderContext) -> GrantResult:
        grant = await tx.grants.get(current.tenant, current.id)
        if current.state is LifecycleState.ACTIVE and grant is not None:
            return held.grant_result(current, grant)
        if current.state is LifecycleState.REVOKING:
            return GrantResult(state=LifecycleState.REVOKING)
        return GrantResult(state=current.state, failure=current.reason or ErrorCode.CONSENT_REQUIRED)


def _is_pending(connection: Connection, late: LateTokens) -> bool:
    return connection.state in STATES_WITHOUT_GRANT and connection.generation == late.from_generation


def _is_undecided(news: GrantResult) -> bool:
    """It brought a grant, or nothing that says whether it is any good."""
    if news.failure is None:
        return True
    return not news.consent_over and FAILURES[news.failure].kind is not FailureKind.RECONNECT_NEEDED
