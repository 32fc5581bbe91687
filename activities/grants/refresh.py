"""Refresh: spend a refresh token for the next generation (RFC 6749 section 6)."""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.grants.client_secrets import is_client_refused
from activities.grants.late_tokens import keep_late_tokens
from activities.grants.orphaned_tokens import revoke_orphaned_tokens
from activities.grants.subject_tokens import load_subject_token
from activities.grants.token_request import (
    ResponseParser,
    TokenRequest,
    access_token_request,
    read_refreshed_tokens,
    refresh_token_request,
    token_request_by_client_grant,
)
from activities.single_use.circuit_breakers import BreakerPermit, CircuitBreakers
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import OutcomeHandler, SingleUseAttempt, SingleUseProtocol, open_attempt
from activities.support.clocks import earlier_now, obtained_at
from activities.support.connection_health import record_recovery, record_refresh_failure, record_unsent
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_activities import ProviderActivities
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.transactions import (
    append_audit,
    close_attempt,
    commit_with_retries,
    is_taken_over,
    load_connection,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.connections.refresh_rules import Rotation
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.lifecycle.late_tokens import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.connection import (
    SIGNAL_PROVIDER_CHANGED,
    SIGNAL_ROTATE,
    ActivityName,
    GrantResult,
    ProviderChanged,
    RefreshGrant,
    Rotate,
)
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from providers.requests.sender import Sender


class RefreshActivities(ProviderActivities):
    """Needs a store, a sender and the single-use protocol; knows no provider by name."""

    def __init__(
        self,
        store: Store,
        holder: ProviderContextLoader,
        sender: Sender,
        single_use: SingleUseProtocol,
        clock: Clock,
        circuits: CircuitBreakers,
    ) -> None:
        super().__init__(store, holder, sender, single_use, clock)
        self._circuits = circuits

    @activity.defn(name=ActivityName.REFRESH_GRANT)
    async def refresh_grant(self, order: RefreshGrant) -> GrantResult:
        """Refresh unless it is already done, unwanted or impossible; says what holds now."""
        async with heartbeating():
            try:
                held = await self._contexts.load(order.tenant, order.connection_id)
                return await self._skip_reason(order, held) or await self._client_secrets.try_each(
                    order, held, partial(self._refresh_with_definition, order)
                )
            except Failure as failure:
                news = failed_grant_result(failure)
                await record_unsent(self._store, self._clock, order, failure)
                return news

    async def _skip_reason(self, order: RefreshGrant, held: ProviderContext) -> GrantResult | None:
        """An answer that needs no provider: revoking, refreshed by an earlier try, or idle."""
        connection, grant = held.connection, held.grant
        if connection.state is not LifecycleState.ACTIVE or grant is None:
            if connection.state is LifecycleState.REVOKING:
                return GrantResult(state=LifecycleState.REVOKING)
            return GrantResult(
                state=connection.state, failure=connection.reason or ErrorCode.CONSENT_REQUIRED
            )
        if connection.generation > order.generation:
            return held.grant_result(connection, grant)
        if connection.generation < order.generation:
            raise Failure(
                ErrorCode.STORE_BEHIND,
                f"generation {connection.generation} is stored, {order.generation} was seen",
            )
        if order.only_if_leased:
            async with self._store.read() as tx:
                leased = await tx.usage.leased_generation(order.tenant, order.connection_id)
            if leased < order.generation:
                return GrantResult(not_leased=True)
        return None

    async def _refresh_with_definition(self, order: RefreshGrant, held: ProviderContext) -> GrantResult:
        return await self._definitions.run(held, partial(self._refresh, order))

    async def _refresh(self, order: RefreshGrant, held: ProviderContext) -> GrantResult:
        assert held.grant is not None
        renewal = await self._token_request(order, held)
        if renewal is None and held.provisional and not held.spec.refresh_supported:
            return GrantResult(failure=ErrorCode.CLIENT_REJECTED)  # so it says; the version before is asked
        if renewal is None:
            return await self._without_refresh_token(order, held)
        mine = held.connection.id
        async with self._circuits.permit(held.integration, mine, held.definition_id) as passage:
            return await self._send(order, held, renewal, passage)

    async def _send(
        self, order: RefreshGrant, held: ProviderContext, renewal: TokenRequest, passage: BreakerPermit
    ) -> GrantResult:
        assert held.grant is not None
        try:
            use = await self._single_use.open(
                AttemptKind.REFRESH,
                held.connection,
                renewal.rules,
                token_valid=not order.token_over and held.grant.is_valid(earlier_now(self._clock)),
            )
        except Failure as failure:
            if failure.code is not ErrorCode.OUTCOME_UNKNOWN:
                raise
            return await self._give_up(order)
        reading = ResponseParser(held, lambda by, reply: read_refreshed_tokens(by, reply, self._clock.now()))
        spending = self._single_use.spend(
            use,
            order,
            send=lambda check: passage.track(renewal.send(check)),
            ending=self._outcome_handler(order, held, reading, provisional=held.provisional),
        )
        news = await metrics.measure_refresh(held.spec.name, spending)
        return news.model_copy(update={"used_previous_definition": reading.used_previous_definition})

    async def _token_request(self, order: RefreshGrant, held: ProviderContext) -> TokenRequest | None:
        """What the next token is made from; None when there is nothing."""
        if held.connection.flow.is_client_grant:
            exchanged = await load_subject_token(
                self._store, self._contexts, self._clock, order.context, held
            )
            scopes = held.connection.requested_scopes
            return token_request_by_client_grant(self._sender, self._clock, held, scopes, exchanged)
        if held.access_token_exchange is not None:
            assert held.grant is not None
            if not held.grant.is_valid(earlier_now(self._clock)):
                return None
            async with self._store.read() as tx:
                access_token = await tx.grants.access_token(held.connection)
            return access_token_request(self._sender, held, held.access_token_exchange, access_token)
        if not held.spec.refresh_supported or held.grant is None or not held.grant.refreshable:
            return None
        async with self._store.read() as tx:
            token = await tx.grants.refresh_token(held.connection)
        if token is None:
            return None
        return refresh_token_request(self._sender, held, token)

    async def replay(self, use: SingleUseAttempt, answer: JournaledReply) -> GrantResult:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = RefreshGrant.model_validate(answer.request)
        held = await self._contexts.load(order.tenant, order.connection_id)
        reading = ResponseParser(held, lambda by, reply: read_refreshed_tokens(by, reply, answer.came_at))
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._outcome_handler(order, held, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _outcome_handler(
        self, order: RefreshGrant, held: ProviderContext, reading: ResponseParser, *, provisional: bool
    ) -> OutcomeHandler[GrantResult]:
        return OutcomeHandler(
            judge=reading.tokens,
            commit=partial(self._install_tokens, order, held),
            fail=partial(self._record_failure, order, held, not provisional),
            provisional=provisional,
            spends_credential=not held.spends_nothing
            and held.integration.refresh.rotation is not Rotation.NONE,
        )

    async def _install_tokens(
        self, order: RefreshGrant, held: ProviderContext, use: SingleUseAttempt, tokens: TokenSet
    ) -> GrantResult:
        """Compare-and-set until it holds: a revocation in between keeps its state.

        Raises Failure REFRESH_PENDING while another worker's use may still end what came: the journal
        keeps it until then.
        """
        before, attempt = held.grant, use.row
        assert before is not None
        since = obtained_at(self._clock, attempt, tokens)

        async def install(tx: Transaction) -> GrantResult | None:
            now = self._clock.now()
            # a late one waits for whoever has the row, and what it has read then must still hold
            current = await load_connection(tx, order, locked=await is_taken_over(tx, attempt))
            if current.state.is_final:
                return None
            if current.generation != attempt.from_generation:
                await close_attempt(tx, attempt, AttemptOutcome.SUPERSEDED, now)
                newer = await tx.grants.get(order.tenant, order.connection_id)
                return held.grant_result(current, newer or before)
            if current.state not in (LifecycleState.ACTIVE, LifecycleState.REVOKING):
                # another worker took over and was refused: what comes after that is verified first
                await close_attempt(tx, attempt, AttemptOutcome.SUPERSEDED, now)
                if current.state in STATES_WITHOUT_GRANT:
                    await keep_late_tokens(tx, order, use, tokens, now)
                return GrantResult(state=current.state, failure=current.reason or ErrorCode.CONSENT_REQUIRED)
            mine = await close_attempt(tx, attempt, AttemptOutcome.INSTALLED, now)
            crossed = False
            if not mine and current.state is LifecycleState.ACTIVE and not held.spends_nothing:
                crossed = await self._single_use.record_late_install(tx, use, held.integration.refresh)
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
            if not mine or (use.entry is not None and use.entry.is_set_aside):
                await _signal_provider_changed(tx, order, saved, now)
            if crossed:
                await _signal_rotate(tx, order, attempt, now)
            await record_recovery(tx, order, current, now)
            await append_audit(tx, order, AuditAction.GRANT_REFRESHED, now, generation=grant.generation)
            return held.grant_result(saved, grant)

        news = await commit_with_retries(self._store, install, use.keys)
        if news is not None:
            return news
        return await revoke_orphaned_tokens(self._store, self._clock, self._sender, order, held, use, tokens)

    async def _record_failure(
        self,
        order: RefreshGrant,
        held: ProviderContext,
        believed: bool,  # a staged definition's refusals are not
        use: SingleUseAttempt,
        failure: Failure,
        outcome: AttemptOutcome | None,
    ) -> GrantResult:
        """Close the attempt unless its token may be spent; condemn the grant only when refused."""
        attempt = use.row

        async def settle(tx: Transaction) -> GrantResult:
            now, code = self._clock.now(), failure.code
            if code is ErrorCode.GRANT_REJECTED and believed and not held.spends_nothing:
                # another use spent it, or ended what came, and the subject hasn't taken it back
                its = (attempt.tenant, attempt.connection_id, attempt.from_generation)
                if (
                    attempt.sends > 1
                    or await is_taken_over(tx, attempt)
                    or await tx.attempts.may_be_invalidated(*its)
                ):
                    code = ErrorCode.OUTCOME_UNKNOWN
            if outcome is not None:
                await close_attempt(tx, attempt, outcome, now)
            current = await load_connection(tx, order)
            if current.generation != attempt.from_generation and current.state is LifecycleState.ACTIVE:
                # a late no about a grant that was replaced meanwhile says nothing about the new one
                if code is ErrorCode.OUTCOME_UNKNOWN:
                    await _signal_rotate(tx, order, attempt, now)
                await append_audit(tx, order, AuditAction.REFRESH_FAILED, now, reason=code, superseded=True)
                return await self._current_result(tx, current, held)
            refused = failure.kind is FailureKind.RECONNECT_NEEDED
            condemned = refused and believed and current.state is LifecycleState.ACTIVE
            if condemned:
                await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            else:
                over = order.token_over or (held.grant is not None and not held.grant.is_valid(now))
                await record_refresh_failure(tx, order, current, code, now, token_over=over)
            action = AuditAction.NEEDS_REAUTH if condemned else AuditAction.REFRESH_FAILED
            await append_audit(tx, order, action, now, reason=code)
            if current.state is LifecycleState.REVOKING:
                return GrantResult(state=LifecycleState.REVOKING)
            return GrantResult(
                attempt_id=attempt.id,
                failure=code,
                retry_after=failure.retry_after,
                client_refused=is_client_refused(failure),
                unknown_error=outcome is AttemptOutcome.REFUSED,
            )

        return await commit_with_retries(self._store, settle)

    async def _current_result(
        self, tx: Transaction, current: Connection, held: ProviderContext
    ) -> GrantResult:
        """Somebody else brought a newer grant: an import, a consent, another worker."""
        newer = await tx.grants.get(current.tenant, current.id)
        assert newer is not None
        return held.grant_result(current, newer)

    async def _give_up(self, order: RefreshGrant) -> GrantResult:
        """Its token was sent as often as it may be, and nobody knows what became of it."""
        code, now = ErrorCode.OUTCOME_UNKNOWN, self._clock.now()
        async with self._store.write() as tx:
            current = await load_connection(tx, order)
            attempt = await open_attempt(tx, current)
            if current.state is not LifecycleState.ACTIVE or current.generation != order.generation:
                raise Failure(ErrorCode.STORE_CONFLICT, "another change came first")  # Temporal asks again
            if attempt is not None:
                await tx.attempts.close(attempt, AttemptOutcome.GIVEN_UP, now)
            await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            await append_audit(tx, order, AuditAction.NEEDS_REAUTH, now, reason=code)
        return GrantResult(failure=code)

    async def _without_refresh_token(self, order: RefreshGrant, held: ProviderContext) -> GrantResult:
        """The grant can't be refreshed: when its access token is over, the subject must act."""
        assert held.grant is not None
        if held.grant.is_valid(earlier_now(self._clock)):  # no clock condemns anybody alone
            if held.grant.expires_at is None and not held.grant.interim:
                return GrantResult(
                    not_leased=True
                )  # nothing ends and nothing is due: no look again by itself
            return held.grant_result(held.connection, held.grant)

        async def expire(tx: Transaction) -> GrantResult:
            now = self._clock.now()
            current = await load_connection(tx, order)
            if current.state is LifecycleState.ACTIVE:
                rejected = current.rejected(ErrorCode.CONSENT_REQUIRED, now)
                await tx.connections.replace(rejected, expected=current.revision)
                await append_audit(
                    tx, order, AuditAction.NEEDS_REAUTH, now, reason=ErrorCode.CONSENT_REQUIRED
                )
            return GrantResult(failure=ErrorCode.CONSENT_REQUIRED)

        return await commit_with_retries(self._store, expire)


async def _signal_provider_changed(
    tx: Transaction, order: RefreshGrant, connection: Connection, now: datetime
) -> None:
    """Its workflow may wait for hours, for an admin who has acted, or since the use that took over failed."""
    told = ProviderChanged(version=connection.revision, context=order.context)
    await tx.outbox.add(signal_message(order.tenant, order.connection_id, SIGNAL_PROVIDER_CHANGED, told, now))


async def _signal_rotate(tx: Transaction, order: RefreshGrant, attempt: Attempt, now: datetime) -> None:
    """A second use of the token was refused, or never answered, and its successor is installed: that may
    have ended its family. A refresh finds out now, and not when somebody needs the token. What is asked
    first tells a workflow that hasn't heard of the successor."""
    reason = "a second use of the token before it may have ended it"
    for seen in (attempt.from_generation, attempt.from_generation + 1):
        rotate = Rotate(reason=reason, context=order.context, seen_generation=seen)
        await tx.outbox.add(signal_message(order.tenant, order.connection_id, SIGNAL_ROTATE, rotate, now))
