"""Refresh: spend a refresh token for the next generation of a grant (RFC 6749 section 6)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.account_check import with_believed_account
from activities.grants.client_grants import client_grant_token_request, read_client_grant_tokens
from activities.grants.control_request import answer_of
from activities.grants.dead_grants import condemn, end_refused_token
from activities.grants.late_tokens import keep_late_tokens, signal_changed, signal_rotate
from activities.grants.narrowing import (
    is_narrowing_refused,
    record_narrowing_refusal,
    refreshed_detail,
    tokens_of_chain,
)
from activities.grants.recurring_errors import (
    AnsweredError,
    answered_error,
    failed_refresh,
    is_worth_a_try,
    may_be_spent_by_another_use,
    reconnect_if_it_recurs,
    rotation_seen,
)
from activities.grants.replaced_grants import keep_overtaken_tokens
from activities.grants.spend import GrantSpend, spend
from activities.grants.token_request import RefreshTokenRequest, access_token_exchange
from activities.single_use.attempt import JournaledReply, SingleUseAttempt, SpendRequest
from activities.single_use.intent import open_attempt
from activities.single_use.pacing import BreakerPermit, CircuitBreakers, RefreshPacing, Turn
from activities.support.provider_context import ProviderContext
from activities.support.temporal import (
    earlier_now,
    failed_grant_result,
    heartbeating,
    internal_after_last_try,
    to_its_end,
)
from activities.support.transactions import (
    append_audit,
    close_attempt,
    close_read,
    commit_with_retries,
    load_connection,
    record_recovery,
    record_refresh_failure,
    record_unsent,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.store.connections.context_rows import Renewal
from evergrant_server.telemetry import metrics
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens


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
            result = await to_its_end(asyncio.create_task(self._refresh(request)))
            if result.failure is not None:
                await to_its_end(asyncio.create_task(end_refused_token(self._services, request, result)))
            return result

    async def _refresh(self, request: RefreshGrant) -> GrantResult:
        """From load to commit: the grant, a postponement, or the failure that the workflow decides about."""
        services = self._services
        try:
            with internal_after_last_try():
                context = await services.contexts.load(request.tenant, request.connection_id)
                result = self._result_without_request(request, context)
                if result is not None:
                    return result
                if request.only_with_evidence and not await is_worth_a_try(services, context):
                    return GrantResult(undecided=True)
                async with self._pacing.turn(context, may_be_postponed=request.may_be_postponed) as turn:
                    if turn.postponed_s is not None:
                        stored = context.stored_result(context.connection, context.grant)
                        return stored.__replace__(postponed_s=turn.postponed_s)

                    def spend_with(candidate: ProviderContext) -> RefreshSpend:
                        return RefreshSpend(services, request, candidate, self._breakers, turn)

                    last, result = await spend(context, spend_with)
                    if last.error is None:
                        return result
                    return await reconnect_if_it_recurs(services, request, last.context, last.error) or result
        except Failure as failure:
            if failure.code is ErrorCode.OUTCOME_UNKNOWN:
                return await self._give_up(request)
            result = failed_grant_result(failure)
            await record_unsent(self._store, self._clock, request, failure)
            return result

    @staticmethod
    def _result_without_request(request: RefreshGrant, context: ProviderContext) -> GrantResult | None:
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
        if request.only_if_leased and context.leased_generation < grant.token_generation:
            return GrantResult(not_leased=True)
        return None

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, RefreshGrant.model_validate(journaled.request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        replayed = RefreshSpend(services, request, context, provisional=journaled.provisional)
        result = await services.single_use.conclude(attempt, journaled, replayed)
        await end_refused_token(services, request, result)
        return result

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
            await condemn(tx, request, current, ErrorCode.OUTCOME_UNKNOWN, now)
        return GrantResult(failure=ErrorCode.OUTCOME_UNKNOWN)


@dataclass
class RefreshSpend(GrantSpend[RefreshGrant]):
    """Spends a refresh token. Installs a generation, or condemns the grant once the provider refused it."""

    breakers: CircuitBreakers | None = None  # None: the reply comes from a journal
    turn: Turn | None = None
    error: AnsweredError | None = field(default=None, init=False)  # it may come back
    _reply: RawReply | None = field(default=None, init=False)  # the newest, of which a refusal is compared
    _permit: BreakerPermit | None = field(default=None, init=False)
    _sent: Secret | None = field(default=None, init=False)  # the refresh token, if this process sent it

    kind = AttemptKind.REFRESH

    @property
    def spends_credential(self) -> bool:
        rotates = self.context.integration.refresh.rotation is not Rotation.NONE
        return rotates and not self.context.spends_nothing

    @property
    def token_valid(self) -> bool:
        return not self.call.token_over and self._token_is_valid()

    def _token_is_valid(self) -> bool:
        grant = self.context.grant
        return grant is not None and grant.is_valid(earlier_now(self.services.clock))

    async def request(self) -> SpendRequest | GrantResult:
        """What to ask for the next token with; the result when nothing is left to ask with."""
        services, context = self.services, self.context
        if context.connection.flow.is_client_grant:
            return await client_grant_token_request(services, self.call.context, context)
        grant, exchange = context.grant, context.access_token_exchange
        if exchange is not None and self._token_is_valid():
            return access_token_exchange(context, exchange, context.tokens.access_token())
        if exchange is None and context.spec.refresh_supported and grant is not None and grant.refreshable:
            refresh_token = context.tokens.refresh_token()
            if refresh_token is not None:
                self._sent, rules = refresh_token, context.integration.refresh
                return RefreshTokenRequest(context, rules, refresh_token, self.call.scopes)
        return await self._without_refresh_token()

    async def _without_refresh_token(self) -> GrantResult:
        """The result for a grant that can't be refreshed; once its access token is over, it is condemned."""
        request, context = self.call, self.context
        if context.provisional and not context.spec.refresh_supported:
            raise Failure(ErrorCode.CLIENT_REJECTED)  # a staged definition says so: the previous one is used
        grant = context.grant
        assert grant is not None
        if self._token_is_valid():
            if grant.expires_at is None and not grant.short_lived:
                return GrantResult(not_leased=True)  # nothing ends: no timer is needed
            return context.grant_result(context.connection, grant)

        async def expire(tx: Transaction) -> GrantResult:
            current = await load_connection(tx, request)
            if current.state is LifecycleState.ACTIVE:
                await condemn(tx, request, current, ErrorCode.CONSENT_REQUIRED, self.services.clock.now())
            return GrantResult(failure=ErrorCode.CONSENT_REQUIRED)

        return await commit_with_retries(self.services.store, expire)

    @asynccontextmanager
    async def admission(self) -> AsyncIterator[None]:
        context = self.context
        assert self.breakers is not None
        definition = context.definition.id if context.definition else ""
        permit = self.breakers.permit(context.integration, context.connection.id, definition)
        async with permit as self._permit:
            yield

    def sending(self) -> None:
        if self.turn is not None:
            self.turn.sending()

    def answered(self, answer: RawReply | SendFailed) -> None:
        if self._permit is not None:
            self._permit.answered(answer)
        if self.turn is not None and isinstance(answer, RawReply):
            self.turn.answered(answer)

    def count(self, ended: GrantResult | Failure | None, seconds: float) -> None:
        outcome = "cut" if ended is None else "refreshed"
        if isinstance(ended, Failure):
            outcome = ended.code.value
        elif ended is not None and ended.failure is not None:
            outcome = str(ended.failure)
        metrics.record_refresh(self.context.spec.name, outcome, seconds)

    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        self._reply = reply
        return super().judge(reply, came_at)

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """Raises as `read_tokens`."""
        if context.connection.flow.is_client_grant:
            return read_client_grant_tokens(context, reply, context.connection.requested_scopes, came_at)
        scopes = context.grant.scopes if context.grant else ()
        try:
            return read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at)
        except Failure as failure:
            never_bound = context.grant is not None and context.grant.token_type != DPOP_TOKEN_TYPE
            if failure.code is not ErrorCode.REPLY_UNREADABLE or not (context.spec.dpop and never_bound):
                raise
            # DPoP was required after the consent and the provider didn't bind these: bearer tokens as before
            bearer = context.spec.__replace__(dpop=False)
            return read_tokens(bearer, reply, requested_scopes=scopes, refreshing=True, now=came_at)

    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        """Raises Failure REFRESH_PENDING while another worker's use may still invalidate the tokens: the
        journal keeps them until then."""
        request, context, row, now = self.call, self.context, attempt.row, self.services.clock.now()
        rows = await tx.context_rows.renewal(row)
        if rows.is_taken_over or rows.connection.generation != row.from_generation:
            # a late reply waits for other transactions on this row, so that what it reads still holds
            rows = await tx.context_rows.renewal(row, locked=True)
        current = rows.connection
        if current.state.is_final:
            return None
        believed = with_believed_account(context, tokens)
        if current.generation != row.from_generation:
            await close_read(tx, rows.attempt, AttemptOutcome.SUPERSEDED, now)
            await keep_overtaken_tokens(tx, request, context, row, believed, now)
            return await self._stored_result(tx, current)
        if current.state not in (LifecycleState.ACTIVE, LifecycleState.REVOKING):
            # another worker took over and was refused: late tokens are verified before they are used
            await close_read(tx, rows.attempt, AttemptOutcome.SUPERSEDED, now)
            if current.state in STATES_WITHOUT_GRANT:
                await keep_late_tokens(tx, request, row, tokens_of_chain(request, tokens), now)
            return context.stored_result(current, None)
        in_time = await close_read(tx, rows.attempt, AttemptOutcome.INSTALLED, now)
        late = not in_time and current.state is LifecycleState.ACTIVE and not context.spends_nothing
        may_be_invalid = late and await self.services.single_use.tracker.record_late_install(
            tx, row, context.integration.refresh, journaled=attempt.entry is not None
        )
        if not late and rows.attempt is not None and rows.is_taken_over:  # so it isn't taken for lost
            await tx.attempts.mark_installed_late(rows.attempt)
        saved, grant = await self._replace_grant(tx, rows, believed, since, now)
        if not in_time or (attempt.entry is not None and attempt.entry.is_set_aside):
            await signal_changed(tx, request, saved, now)
        if may_be_invalid:
            await signal_rotate(tx, request, row, now)
        await record_recovery(tx, request, current, now)
        detail = refreshed_detail(request, tokens, grant) | rotation_seen(context, self._sent, tokens)
        await append_audit(tx, request, AuditAction.GRANT_REFRESHED, now, **detail)
        return context.grant_result(saved, grant)

    async def _replace_grant(
        self, tx: Transaction, rows: Renewal, tokens: TokenSet, since: datetime, now: datetime
    ) -> tuple[Connection, Grant]:
        current = rows.connection
        after, offline = current.refreshed(now), self.context.spec.offline_scope
        before, narrowed = rows.grant or self.context.grant, None  # an account may have been chosen since
        grant = Grant.from_tokens(
            tokens,
            generation=after.generation,
            requested=current.requested_scopes,
            at=since,
            before=before,
            renewable=self.context.renewable,
        )
        if self.call.scopes and before is not None:
            narrowed, grant = grant.narrowed(self.call.scopes, offline), grant.keeping_access_token(before)
        new = await tx.grants.install(
            after, tokens, grant, origin=Origin.REFRESH, expected=current.revision, stored=rows.stored
        )
        if narrowed is not None:
            await tx.narrowed_tokens.put(new, narrowed, tokens.access_token, now)
        return new, grant

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        """Condemn the grant only when the provider refused it, and not for a staged definition."""
        request, row, now = self.call, attempt.row, self.services.clock.now()
        if request.scopes and is_narrowing_refused(failure):
            return await record_narrowing_refusal(tx, request, self.context, row, failure, now)
        code = await self._code_of(tx, row, failure)
        if outcome is not None:
            await close_attempt(tx, row, outcome, now)
        current = await load_connection(tx, request)
        if current.generation != row.from_generation and current.state is LifecycleState.ACTIVE:
            # a late refusal of a grant that was replaced meanwhile says nothing about the new one
            if code is ErrorCode.OUTCOME_UNKNOWN:
                await signal_rotate(tx, request, row, now)
            await append_audit(tx, request, AuditAction.REFRESH_FAILED, now, reason=code, superseded=True)
            return await self._stored_result(tx, current)
        answer = None if self._reply is None else answer_of(self._reply, self._sent)
        changed_at = self.context.integration.changed_at
        failed = await failed_refresh(tx, current, row, failure, outcome, answer, changed_at, now)
        if not self.provisional:
            self.error = await answered_error(tx, self.context, current, failed)
            code = self.error.code if self.error else code
        refused = failure.kind is FailureKind.RECONNECT_NEEDED and not self.provisional
        if refused and current.state is LifecycleState.ACTIVE:
            await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            await append_audit(tx, request, AuditAction.NEEDS_REAUTH, now, reason=code, **words_in(failure))
        else:
            grant = self.context.grant
            expired = request.token_over or (grant is not None and not grant.is_valid(now))
            await record_refresh_failure(tx, request, current, code, now, token_over=expired)
            detail = {"reason": code, **words_in(failure), **failed.detail}
            await append_audit(tx, request, AuditAction.REFRESH_FAILED, now, **detail)
        if current.state is LifecycleState.REVOKING:
            return GrantResult(state=LifecycleState.REVOKING)
        return failed.result(code)

    async def _code_of(self, tx: Transaction, row: Attempt, failure: Failure) -> ErrorCode:
        """OUTCOME_UNKNOWN for a grant that another use may have ended, and not the subject."""
        if failure.code is not ErrorCode.GRANT_REJECTED or self.provisional:
            return failure.code
        spent = await may_be_spent_by_another_use(tx, self.context, row)
        return ErrorCode.OUTCOME_UNKNOWN if spent else failure.code

    async def _stored_result(self, tx: Transaction, current: Connection) -> GrantResult:
        """The newer grant: of an import, a consent or another worker."""
        newer = await tx.grants.get(current.tenant, current.id) or self.context.grant
        assert newer is not None
        return self.context.grant_result(current, newer)
