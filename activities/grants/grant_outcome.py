"""The outcome of a token request: read its reply, install the tokens or record the failure."""

from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from activities.grants import GrantServices
from activities.grants.account_check import revoked_if_ended, with_believed_account
from activities.grants.candidates import is_client_refused
from activities.grants.client_grants import read_client_grant_tokens
from activities.grants.late_tokens import keep_late_tokens, signal_rotate
from activities.grants.overtaken_tokens import keep_overtaken_tokens
from activities.grants.provider_revocation import revoke_orphaned_tokens
from activities.grants.recurring_errors import AnsweredError, answered_error, may_be_spent_by_another_use
from activities.single_use.attempt import OutcomeHandler, SingleUseAttempt
from activities.support import narrowing
from activities.support.connection_records import record_recovery, record_refresh_failure
from activities.support.provider_context import ProviderContext
from activities.support.temporal import obtained_at
from activities.support.transactions import (
    append_audit,
    close_attempt,
    commit_with_retries,
    is_taken_over,
    load_connection,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult, RefreshGrant
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

C = TypeVar("C", bound=ConnectionCall)


@dataclass
class GrantOutcome(OutcomeHandler[GrantResult], Generic[C]):
    """The steps that all flows share. A flow reads its replies and writes its rows."""

    services: GrantServices
    call: C
    context: ProviderContext
    provisional: bool = field(default=False, kw_only=True)  # a staged definition sent it, whichever reads
    used_previous_definition: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.provisional = self.provisional or self.context.provisional

    @abstractmethod
    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. Pure. Raises Failure."""

    @abstractmethod
    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        """Install the tokens, obtained at `since`. None: their connection has ended."""

    @abstractmethod
    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        """Record a failure, and close the attempt if its outcome is known."""

    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. What a staged definition can't read, or calls a refusal in spite of a
        2xx status, is read with the definition before it: single-use tokens come once."""
        try:
            return self.read(self.context, reply, came_at)
        except Failure as failure:
            success = failure.code is ErrorCode.REPLY_UNREADABLE or 200 <= reply.status < 300
            if not self.context.provisional or not success:
                raise
            with suppress(Failure):
                tokens = self.read(self.context.with_previous_definition(), reply, came_at)
                self.used_previous_definition = True
                return tokens
            raise

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> GrantResult:
        """Compare-and-set until it holds: a revocation in between keeps its state."""
        services = self.services
        since = obtained_at(services.clock, attempt.row, tokens)
        result = await commit_with_retries(
            services.store, lambda tx: self.install(tx, attempt, tokens, since), attempt.keys
        )
        if result is None:
            return await revoke_orphaned_tokens(services, self.call, self.context, attempt.row, tokens)
        return result

    async def fail(
        self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        services, call, row = self.services, self.call, attempt.row
        result = await commit_with_retries(
            services.store, lambda tx: self.record_failure(tx, attempt, failure, outcome)
        )
        return await revoked_if_ended(services, call, self.context, row, failure) or result


@dataclass
class RefreshOutcome(GrantOutcome[RefreshGrant]):
    """Installs a generation, or condemns the grant once the provider has refused it."""

    error: AnsweredError | None = field(default=None, init=False)  # it may come back

    @property
    def spends_credential(self) -> bool:
        rotates = self.context.integration.refresh.rotation is not Rotation.NONE
        return rotates and not self.context.spends_nothing

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
        request, context, row = self.call, self.context, attempt.row
        now = self.services.clock.now()
        # a late reply waits for other transactions on this row, so that what it reads still holds
        current = await load_connection(tx, request, locked=await is_taken_over(tx, row))
        if current.state.is_final:
            return None
        if current.generation != row.from_generation:
            await close_attempt(tx, row, AttemptOutcome.SUPERSEDED, now)
            await keep_overtaken_tokens(
                tx, request, context, row, with_believed_account(context, tokens), now
            )
            return await self._stored_result(tx, current)
        if current.state not in (LifecycleState.ACTIVE, LifecycleState.REVOKING):
            # another worker took over and was refused: late tokens are verified before they are used
            await close_attempt(tx, row, AttemptOutcome.SUPERSEDED, now)
            if current.state in STATES_WITHOUT_GRANT:
                await keep_late_tokens(tx, request, row, narrowing.of_chain(request, tokens), now)
            return context.stored_result(current, None)
        in_time = await close_attempt(tx, row, AttemptOutcome.INSTALLED, now)
        may_be_invalid = False
        if not in_time and current.state is LifecycleState.ACTIVE and not context.spends_nothing:
            may_be_invalid = await self.services.single_use.tracker.record_late_install(
                tx, row, context.integration.refresh, journaled=attempt.entry is not None
            )
        believed = with_believed_account(context, tokens)
        saved, grant = await self._replace_grant(tx, current, believed, since, now)
        if not in_time or (attempt.entry is not None and attempt.entry.is_set_aside):
            # the workflow reads the store now: it may be waiting for hours
            changed = ProviderChanged(version=saved.revision, context=request.context)
            name, target = SignalName.PROVIDER_CHANGED, (row.tenant, row.connection_id)
            await tx.outbox.add(signal_message(*target, name, changed, now))
        if may_be_invalid:
            await signal_rotate(tx, request, row, now)
        await record_recovery(tx, request, current, now)
        detail = narrowing.detail_of(request, tokens, grant)
        await append_audit(tx, request, AuditAction.GRANT_REFRESHED, now, **detail)
        return context.grant_result(saved, grant)

    async def _replace_grant(
        self, tx: Transaction, current: Connection, tokens: TokenSet, since: datetime, now: datetime
    ) -> tuple[Connection, Grant]:
        after, offline = current.refreshed(now), self.context.spec.offline_scope
        stored = await tx.grants.get(current.tenant, current.id)  # an account may have been chosen since
        before, narrowed = stored or self.context.grant, None
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
        new = await tx.grants.install(after, tokens, grant, origin=Origin.REFRESH, expected=current.revision)
        if narrowed is not None:
            await tx.narrowed_tokens.put(new, narrowed, tokens.access_token, now)
        return new, grant

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        """Condemn the grant only when the provider refused it, and not for a staged definition."""
        request, row, now = self.call, attempt.row, self.services.clock.now()
        if request.scopes and narrowing.is_refused(failure):
            return await narrowing.record_refusal(tx, request, self.context, row, failure, now)
        code = failure.code
        if code is ErrorCode.GRANT_REJECTED and not self.provisional:
            spent = await may_be_spent_by_another_use(tx, self.context, row)
            code = ErrorCode.OUTCOME_UNKNOWN if spent else code
        if outcome is not None:
            await close_attempt(tx, row, outcome, now)
        current = await load_connection(tx, request)
        if current.generation != row.from_generation and current.state is LifecycleState.ACTIVE:
            # a late refusal of a grant that was replaced meanwhile says nothing about the new one
            if code is ErrorCode.OUTCOME_UNKNOWN:
                await signal_rotate(tx, request, row, now)
            await append_audit(tx, request, AuditAction.REFRESH_FAILED, now, reason=code, superseded=True)
            return await self._stored_result(tx, current)
        if not self.provisional:
            self.error = await answered_error(tx, self.context, row, current, failure, outcome)
            code = self.error.code if self.error else code
        refused = failure.kind is FailureKind.RECONNECT_NEEDED and not self.provisional
        if refused and current.state is LifecycleState.ACTIVE:
            await tx.connections.replace(current.rejected(code, now), expected=current.revision)
            await append_audit(tx, request, AuditAction.NEEDS_REAUTH, now, reason=code, **words_in(failure))
        else:
            grant = self.context.grant
            expired = request.token_over or (grant is not None and not grant.is_valid(now))
            await record_refresh_failure(tx, request, current, code, now, token_over=expired)
            await append_audit(tx, request, AuditAction.REFRESH_FAILED, now, reason=code, **words_in(failure))
        if current.state is LifecycleState.REVOKING:
            return GrantResult(state=LifecycleState.REVOKING)
        return GrantResult(
            attempt_id=row.id,
            failure=code,
            retry_after=failure.retry_after,
            client_refused=is_client_refused(failure),
            unknown_error=outcome is AttemptOutcome.REFUSED,
        )

    async def _stored_result(self, tx: Transaction, current: Connection) -> GrantResult:
        """The newer grant: of an import, a consent or another worker."""
        newer = await tx.grants.get(current.tenant, current.id) or self.context.grant
        assert newer is not None
        return self.context.grant_result(current, newer)
