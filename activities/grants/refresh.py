"""Refresh: spend a refresh token for the next generation of a grant (RFC 6749 section 6)."""

from datetime import datetime

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.candidates import candidates
from activities.grants.client_grants import client_grant_token_request
from activities.grants.grant_outcome import RefreshOutcome
from activities.grants.recurring_errors import AnsweredError, reconnect_if_it_recurs
from activities.grants.token_request import RefreshTokenRequest, TokenRequest, access_token_exchange
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.attempt_tracker import open_attempt
from activities.single_use.circuit_breakers import CircuitBreakers
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.refresh_pacing import RefreshPacing, Turn
from activities.support.bounded_tries import internal_after_last_try
from activities.support.connection_records import record_unsent
from activities.support.provider_context import ProviderContext
from activities.support.temporal import earlier_now, failed_grant_result, heartbeating, to_its_end
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics


class RefreshActivities:
    """Refreshes grants of any provider, and replays the replies that journals hold."""

    def __init__(self, services: GrantServices, breakers: CircuitBreakers, pacing: RefreshPacing) -> None:
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._breakers = breakers
        self._pacing = pacing

    @activity.defn(name=jobs.REFRESH_GRANT.name)
    async def refresh_grant(self, request: RefreshGrant) -> GrantResult:
        """Refresh unless it is done, unwanted or impossible. Returns what the store holds afterwards.

        Failures that the workflow decides about are returned. Failures of the store are raised,
        and Temporal runs the activity again.
        """
        async with heartbeating():
            return await to_its_end(self._refresh_or_failure(request))

    async def _refresh_or_failure(self, request: RefreshGrant) -> GrantResult:
        try:
            with internal_after_last_try():
                return await self._refresh(request)
        except Failure as failure:
            if failure.code is ErrorCode.OUTCOME_UNKNOWN:
                return await self._give_up(request)
            result = failed_grant_result(failure)
            await record_unsent(self._store, self._clock, request, failure)
            return result

    async def _refresh(self, request: RefreshGrant) -> GrantResult:
        """The refresh from load to commit, or its postponement."""
        context = await self._services.contexts.load(request.tenant, request.connection_id)
        result = await self._result_without_request(request, context)
        if result is not None:
            return result
        async with self._pacing.turn(context, may_be_postponed=request.may_be_postponed) as turn:
            if turn.postponed_s is None:
                return await self._request_tokens(request, context, turn)
            stored = context.stored_result(context.connection, context.grant)
            return stored.__replace__(postponed_s=turn.postponed_s)

    async def _request_tokens(
        self, request: RefreshGrant, context: ProviderContext, turn: Turn
    ) -> GrantResult:
        """Each candidate is tried at most once, in an attempt of its own."""
        services = self._services
        result: GrantResult | None = None
        error: AnsweredError | None = None
        async for candidate in candidates(services, request, context):  # one, outside rotations and rollouts
            context, error = candidate.context, None
            with candidate:
                token_request = await self._token_request(request, context)
                if token_request is None:
                    return await self._without_refresh_token(request, context)
                async with self._breakers.permit(
                    context.integration,
                    context.connection.id,
                    context.definition.id if context.definition else "",
                ) as permit:
                    attempt = await services.single_use.open(
                        AttemptKind.REFRESH,
                        context.connection,
                        token_request.rules,
                        token_valid=not request.token_over and self._token_is_valid(context),
                    )
                    sending = turn.watch(token_request.send(services.sender, attempt.check))
                    reply = permit.track(sending)
                    outcome = RefreshOutcome(services, request, context)
                    # in a task that nothing cuts: send, journal the reply, judge it, commit
                    spent = services.single_use.spend(attempt, request, reply, outcome)
                    candidate.result = await metrics.measure_refresh(context.spec.name, spent)
                    candidate.used_previous_definition = outcome.used_previous_definition
                    error = outcome.error
            result = candidate.result
        assert result is not None
        if error is None:
            return result
        return await reconnect_if_it_recurs(services, request, context, error) or result

    async def _result_without_request(
        self, request: RefreshGrant, context: ProviderContext
    ) -> GrantResult | None:
        """The result when no request is sent: revoking, refreshed by an earlier try, or idle."""
        connection, grant = context.connection, context.grant
        if connection.state is not LifecycleState.ACTIVE or grant is None:
            return context.stored_result(connection, grant)
        if connection.generation > request.generation:
            return context.stored_result(connection, grant)
        if request.scopes and not context.narrows:
            return GrantResult(unchanged=True)  # its definition was changed after the API had read it
        if connection.generation < request.generation:
            stored, seen = connection.generation, request.generation
            raise Failure(ErrorCode.STORE_BEHIND, f"generation {stored} is stored, {seen} was seen")
        if request.only_if_leased:
            async with self._store.read() as tx:
                leased = await tx.connections.leased_generation(request.tenant, request.connection_id)
            if leased < grant.token_generation:
                return GrantResult(not_leased=True)
        return None

    async def _token_request(self, request: RefreshGrant, context: ProviderContext) -> TokenRequest | None:
        """What to ask for the next token with; None when nothing is left to ask with."""
        if context.connection.flow.is_client_grant:
            return await client_grant_token_request(self._services, request.context, context)
        if context.access_token_exchange is not None:
            if not self._token_is_valid(context):
                return None
            async with self._store.read() as tx:
                access_token = await tx.grants.access_token(context.connection)
            return access_token_exchange(context, context.access_token_exchange, access_token)
        grant = context.grant
        if not context.spec.refresh_supported or grant is None or not grant.refreshable:
            return None
        async with self._store.read() as tx:
            refresh_token = await tx.grants.refresh_token(context.connection)
        if refresh_token is None:
            return None
        return RefreshTokenRequest(context, context.integration.refresh, refresh_token, request.scopes)

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        request = RefreshGrant.model_validate(journaled.request)
        context = await self._services.contexts.load(request.tenant, request.connection_id)
        outcome = RefreshOutcome(self._services, request, context, provisional=journaled.provisional)
        return await self._services.single_use.conclude(attempt, journaled, outcome)

    async def _give_up(self, request: RefreshGrant) -> GrantResult:
        """Condemn a grant whose token was sent as often as allowed and never answered."""
        now = self._clock.now()
        async with self._store.write() as tx:
            current = await load_connection(tx, request)
            attempt = await open_attempt(tx, current)
            if current.state is not LifecycleState.ACTIVE or current.generation != request.generation:
                raise Failure(ErrorCode.STORE_CONFLICT, "another change came first")  # Temporal retries
            if attempt is not None:
                await tx.attempts.close(attempt, AttemptOutcome.GIVEN_UP, now)
            await _condemn(tx, request, current, ErrorCode.OUTCOME_UNKNOWN, now)
        return GrantResult(failure=ErrorCode.OUTCOME_UNKNOWN)

    async def _without_refresh_token(self, request: RefreshGrant, context: ProviderContext) -> GrantResult:
        """The result for a grant that can't be refreshed; once its access token is over, it is condemned."""
        if context.provisional and not context.spec.refresh_supported:
            raise Failure(ErrorCode.CLIENT_REJECTED)  # a staged definition says so: the previous one is used
        grant = context.grant
        assert grant is not None
        if self._token_is_valid(context):
            if grant.expires_at is None and not grant.short_lived:
                return GrantResult(not_leased=True)  # nothing ends: no timer is needed
            return context.grant_result(context.connection, grant)

        async def expire(tx: Transaction) -> GrantResult:
            current = await load_connection(tx, request)
            if current.state is LifecycleState.ACTIVE:
                await _condemn(tx, request, current, ErrorCode.CONSENT_REQUIRED, self._clock.now())
            return GrantResult(failure=ErrorCode.CONSENT_REQUIRED)

        return await commit_with_retries(self._store, expire)

    def _token_is_valid(self, context: ProviderContext) -> bool:
        return context.grant is not None and context.grant.is_valid(earlier_now(self._clock))


async def _condemn(
    tx: Transaction, request: RefreshGrant, current: Connection, reason: ErrorCode, now: datetime
) -> None:
    await tx.connections.replace(current.rejected(reason, now), expected=current.revision)
    await append_audit(tx, request, AuditAction.NEEDS_REAUTH, now, reason=reason)
