"""Refresh: spend a refresh token for the next generation (RFC 6749 section 6)."""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.answers import Answer
from activities.breaker import Circuits, Passage
from activities.client_secrets import client_refused
from activities.clocks import earlier_hour, living_from
from activities.failures import grant_news
from activities.heartbeat import heartbeats
from activities.holdings import Holder, Holdings
from activities.late_answers import keep_late
from activities.provider_activities import ProviderActivities
from activities.records import closed, connection_of, record, settled, taken_over
from activities.renewal import Reading, Renewal, by_access_token, by_minting, by_refresh_token, renewed
from activities.single_use import Ending, SingleUse, Use, open_attempt
from activities.subject_tokens import subject_token_of
from activities.unwanted import turned_away
from activities.wellbeing import note_failure, note_recovery, note_unsent
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import Attempt, AttemptKind, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.grant import Grant, Origin, TokenSet
from evergrant_server.core.late import WANTED
from evergrant_server.core.messages import (
    SIGNAL_PROVIDER_CHANGED,
    SIGNAL_ROTATE,
    ActivityName,
    GrantNews,
    ProviderChanged,
    RefreshGrant,
    Rotate,
)
from evergrant_server.core.outbox import signal_to
from evergrant_server.core.provider import Rotation
from evergrant_server.store import Store, Tx
from providers.flows import Sender


class RefreshActivities(ProviderActivities):
    """Needs a store, a sender and the single-use protocol; knows no provider by name."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        sender: Sender,
        single_use: SingleUse,
        clock: Clock,
        circuits: Circuits,
    ) -> None:
        super().__init__(store, holder, sender, single_use, clock)
        self._circuits = circuits

    @activity.defn(name=ActivityName.REFRESH_GRANT)
    async def refresh_grant(self, order: RefreshGrant) -> GrantNews:
        """Refresh unless it is already done, unwanted or impossible; says what holds now."""
        async with heartbeats():
            try:
                held = await self._holder.take(order.tenant, order.connection_id)
                return await self._not_needed(order, held) or await self._either_secret.asked(
                    order, held, partial(self._by_definition, order)
                )
            except Failure as failure:
                news = grant_news(failure)
                await note_unsent(self._store, self._clock, order, failure)
                return news

    async def _not_needed(self, order: RefreshGrant, held: Holdings) -> GrantNews | None:
        """An answer that needs no provider: revoking, refreshed by an earlier try, or idle."""
        connection, grant = held.connection, held.grant
        if connection.state is not State.ACTIVE or grant is None:
            if connection.state is State.REVOKING:
                return GrantNews(state=State.REVOKING)
            return GrantNews(state=connection.state, failure=connection.reason or Code.CONSENT_REQUIRED)
        if connection.generation > order.generation:
            return held.news(connection, grant)
        if connection.generation < order.generation:
            raise Failure(
                Code.STORE_BEHIND,
                f"generation {connection.generation} is stored, {order.generation} was seen",
            )
        if order.only_if_leased:
            async with self._store.read() as tx:
                leased = await tx.usage.leased_generation(order.tenant, order.connection_id)
            if leased < order.generation:
                return GrantNews(not_leased=True)
        return None

    async def _by_definition(self, order: RefreshGrant, held: Holdings) -> GrantNews:
        return await self._either_definition.asked(held, partial(self._refresh, order))

    async def _refresh(self, order: RefreshGrant, held: Holdings) -> GrantNews:
        assert held.grant is not None
        renewal = await self._renewal(order, held)
        if renewal is None and held.provisional and not held.spec.refresh_supported:
            return GrantNews(failure=Code.CLIENT_REJECTED)  # so it says; the version before is asked
        if renewal is None:
            return await self._out_of_tokens(order, held)
        mine = held.connection.id
        async with self._circuits.passing(held.integration, mine, held.definition_id) as passage:
            return await self._send(order, held, renewal, passage)

    async def _send(
        self, order: RefreshGrant, held: Holdings, renewal: Renewal, passage: Passage
    ) -> GrantNews:
        assert held.grant is not None
        try:
            use = await self._single_use.begin(
                AttemptKind.REFRESH,
                held.connection,
                renewal.rules,
                token_valid=not order.token_over and held.grant.valid(earlier_hour(self._clock)),
            )
        except Failure as failure:
            if failure.code is not Code.OUTCOME_UNKNOWN:
                raise
            return await self._give_up(order)
        reading = Reading(held, lambda by, reply: renewed(by, reply, self._clock.now()))
        spending = self._single_use.spend(
            use,
            order,
            send=lambda check: passage.watch(renewal.send(check)),
            ending=self._ending(order, held, reading, provisional=held.provisional),
        )
        news = await metrics.refresh_measured(held.spec.name, spending)
        return news.model_copy(update={"read_as_before": reading.as_before})

    async def _renewal(self, order: RefreshGrant, held: Holdings) -> Renewal | None:
        """What the next token is made from; None when there is nothing."""
        if held.connection.flow.mints:
            exchanged = await subject_token_of(self._store, self._holder, self._clock, order.asked, held)
            scopes = held.connection.requested_scopes
            return by_minting(self._sender, self._clock, held, scopes, exchanged)
        if held.exchange is not None:
            assert held.grant is not None
            if not held.grant.valid(earlier_hour(self._clock)):
                return None
            async with self._store.read() as tx:
                access_token = await tx.grants.access_token(held.connection)
            return by_access_token(self._sender, held, held.exchange, access_token)
        if not held.spec.refresh_supported or held.grant is None or not held.grant.refreshable:
            return None
        async with self._store.read() as tx:
            token = await tx.grants.refresh_token(held.connection)
        if token is None:
            return None
        return by_refresh_token(self._sender, held, token)

    async def answered(self, use: Use, answer: Answer) -> GrantNews:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = RefreshGrant.model_validate(answer.order)
        held = await self._holder.take(order.tenant, order.connection_id)
        reading = Reading(held, lambda by, reply: renewed(by, reply, answer.came_at))
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._ending(order, held, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _ending(
        self, order: RefreshGrant, held: Holdings, reading: Reading, *, provisional: bool
    ) -> Ending[GrantNews]:
        return Ending(
            judge=reading.tokens,
            commit=partial(self._install, order, held),
            settle=partial(self._settle, order, held, not provisional),
            provisional=provisional,
            spends=not held.spends_nothing and held.integration.refresh.rotation is not Rotation.NONE,
        )

    async def _install(self, order: RefreshGrant, held: Holdings, use: Use, tokens: TokenSet) -> GrantNews:
        """Compare-and-set until it holds: a revocation in between keeps its state.

        Raises Failure REFRESH_PENDING while another worker's use may still end what came: the journal
        keeps it until then.
        """
        before, attempt = held.grant, use.attempt
        assert before is not None
        since = living_from(self._clock, attempt, tokens)

        async def install(tx: Tx) -> GrantNews | None:
            now = self._clock.now()
            # a late one waits for whoever has the row, and what it has read then must still hold
            current = await connection_of(tx, order, locked=await taken_over(tx, attempt))
            if current.state.final:
                return None
            if current.generation != attempt.from_generation:
                await closed(tx, attempt, Outcome.SUPERSEDED, now)
                newer = await tx.grants.get(order.tenant, order.connection_id)
                return held.news(current, newer or before)
            if current.state not in (State.ACTIVE, State.REVOKING):
                # another worker took over and was refused: what comes after that is verified first
                await closed(tx, attempt, Outcome.SUPERSEDED, now)
                if current.state in WANTED:
                    await keep_late(tx, order, use, tokens, now)
                return GrantNews(state=current.state, failure=current.reason or Code.CONSENT_REQUIRED)
            mine = await closed(tx, attempt, Outcome.INSTALLED, now)
            crossed = False
            if not mine and current.state is State.ACTIVE and not held.spends_nothing:
                crossed = await self._single_use.install_late(tx, use, held.integration.refresh)
            after = current.refreshed(now)
            known = await tx.grants.get(order.tenant, order.connection_id)  # an account may be chosen by now
            grant = Grant.from_tokens(
                tokens,
                generation=after.generation,
                requested=current.requested_scopes,
                at=since,
                before=known or before,
                renewable=held.renewable,
            )
            saved = await tx.grants.install(
                after, tokens, grant, origin=Origin.REFRESH, expected=current.revision
            )
            if not mine or (use.entry is not None and use.entry.aside):
                await _look_at_once(tx, order, saved, now)
            if crossed:
                await _tried_at_once(tx, order, attempt, now)
            await note_recovery(tx, order, current, now)
            await record(tx, order, AuditAction.GRANT_REFRESHED, now, generation=grant.generation)
            return held.news(saved, grant)

        news = await settled(self._store, install, use.keys)
        if news is not None:
            return news
        return await turned_away(self._store, self._clock, self._sender, order, held, use, tokens)

    async def _settle(
        self,
        order: RefreshGrant,
        held: Holdings,
        believed: bool,  # a staged definition's refusals are not
        use: Use,
        failure: Failure,
        outcome: Outcome | None,
    ) -> GrantNews:
        """Close the attempt unless its token may be spent; condemn the grant only when refused."""
        attempt = use.attempt

        async def settle(tx: Tx) -> GrantNews:
            now, code = self._clock.now(), failure.code
            if code is Code.GRANT_REJECTED and believed and not held.spends_nothing:
                # another use spent it, or ended what came, and the subject hasn't taken it back
                its = (attempt.tenant, attempt.connection_id, attempt.from_generation)
                if attempt.sends > 1 or await taken_over(tx, attempt) or await tx.attempts.crossed(*its):
                    code = Code.OUTCOME_UNKNOWN
            if outcome is not None:
                await closed(tx, attempt, outcome, now)
            current = await connection_of(tx, order)
            if current.generation != attempt.from_generation and current.state is State.ACTIVE:
                # a late no about a grant that was replaced meanwhile says nothing about the new one
                if code is Code.OUTCOME_UNKNOWN:
                    await _tried_at_once(tx, order, attempt, now)
                await record(tx, order, AuditAction.REFRESH_FAILED, now, reason=code, superseded=True)
                return await self._replaced(tx, current, held)
            refused = failure.kind is Kind.RECONNECT_NEEDED
            condemned = refused and believed and current.state is State.ACTIVE
            if condemned:
                await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            else:
                over = order.token_over or (held.grant is not None and not held.grant.valid(now))
                await note_failure(tx, order, current, code, now, token_over=over)
            action = AuditAction.NEEDS_REAUTH if condemned else AuditAction.REFRESH_FAILED
            await record(tx, order, action, now, reason=code)
            if current.state is State.REVOKING:
                return GrantNews(state=State.REVOKING)
            return GrantNews(
                attempt_id=attempt.id,
                failure=code,
                retry_after=failure.retry_after,
                client_refused=client_refused(failure),
                refused=outcome is Outcome.REFUSED,
            )

        return await settled(self._store, settle)

    async def _replaced(self, tx: Tx, current: Connection, held: Holdings) -> GrantNews:
        """Somebody else brought a newer grant: an import, a consent, another worker."""
        newer = await tx.grants.get(current.tenant, current.id)
        assert newer is not None
        return held.news(current, newer)

    async def _give_up(self, order: RefreshGrant) -> GrantNews:
        """Its token was sent as often as it may be, and nobody knows what became of it."""
        code, now = Code.OUTCOME_UNKNOWN, self._clock.now()
        async with self._store.write() as tx:
            current = await connection_of(tx, order)
            attempt = await open_attempt(tx, current)
            if current.state is not State.ACTIVE or current.generation != order.generation:
                raise Failure(Code.STORE_CONFLICT, "another change came first")  # Temporal asks again
            if attempt is not None:
                await tx.attempts.close(attempt, Outcome.GIVEN_UP, now)
            await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            await record(tx, order, AuditAction.NEEDS_REAUTH, now, reason=code)
        return GrantNews(failure=code)

    async def _out_of_tokens(self, order: RefreshGrant, held: Holdings) -> GrantNews:
        """The grant can't be refreshed: when its access token is over, the subject must act."""
        assert held.grant is not None
        if held.grant.valid(earlier_hour(self._clock)):  # no clock condemns anybody alone
            if held.grant.expires_at is None and not held.grant.interim:
                return GrantNews(not_leased=True)  # nothing ends and nothing is due: no look again by itself
            return held.news(held.connection, held.grant)

        async def expire(tx: Tx) -> GrantNews:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state is State.ACTIVE:
                rejected = current.rejected(Code.CONSENT_REQUIRED, now)
                await tx.connections.replace(rejected, expected=current.revision)
                await record(tx, order, AuditAction.NEEDS_REAUTH, now, reason=Code.CONSENT_REQUIRED)
            return GrantNews(failure=Code.CONSENT_REQUIRED)

        return await settled(self._store, expire)


async def _look_at_once(tx: Tx, order: RefreshGrant, connection: Connection, now: datetime) -> None:
    """Its workflow may wait for hours, for an admin who has acted, or since the use that took over failed."""
    told = ProviderChanged(version=connection.revision, asked=order.asked)
    await tx.outbox.add(signal_to(order.tenant, order.connection_id, SIGNAL_PROVIDER_CHANGED, told, now))


async def _tried_at_once(tx: Tx, order: RefreshGrant, attempt: Attempt, now: datetime) -> None:
    """A second use of the token was refused, or never answered, and its successor is installed: that may
    have ended its family. A refresh finds out now, and not when somebody needs the token. What is asked
    first tells a workflow that hasn't heard of the successor."""
    reason = "a second use of the token before it may have ended it"
    for seen in (attempt.from_generation, attempt.from_generation + 1):
        rotate = Rotate(reason=reason, asked=order.asked, seen_generation=seen)
        await tx.outbox.add(signal_to(order.tenant, order.connection_id, SIGNAL_ROTATE, rotate, now))
