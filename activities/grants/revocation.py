"""Revocation: the store first, then the provider, then `revoked` (RFC 7009)."""

from typing import NamedTuple

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.client_secrets import record_accepted_secret, try_each_secret
from activities.grants.provider_revocation import (
    AnswersKept,
    lost_uses,
    revoke_all_slots,
    revoke_at_provider,
    revoke_by_grant,
    worst,
)
from activities.grants.replaced_revocation import ReplacedRevocation, revoke_replaced
from activities.single_use.intent import open_attempt
from activities.support.provider_context import ProviderContext
from activities.support.temporal import RETRIED_BY_TEMPORAL, as_failure, heartbeating, report_internal
from activities.support.transactions import append_audit, commit_with_retries, load_connection, log_words
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.replaced import ReplacedGrant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import BeginRevocation, RevocationResult, RevokeGrant
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.requests.sender import Sender

_RETRY_AFTER_S = 3.0
# The store lost the request to an older backup, or refused it when it was made.
_REPEATED_REASON = "requested before, and the store does not say so"


class _AtProvider(NamedTuple):
    """How the provider has revoked; the replaced grants that it no longer takes for valid; the newest use of
    a credential whose answer was lost; the provider's answers to the revocation of the grant in use."""

    outcome: RevocationOutcome
    refused: list[ReplacedGrant]
    lost: Attempt | None
    answers: list[dict[str, str | int]]


class RevocationActivities:
    """Revokes at the provider for as long as it takes, then destroys what the store holds."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services
        self._store = services.store
        self._clock = services.clock

    @activity.defn(name=jobs.BEGIN_REVOCATION.name)
    async def record_revocation_request(self, request: BeginRevocation) -> None:
        """Write `revoking`, unless the API already has."""
        await commit_with_retries(self._store, lambda tx: self._write_revoking(tx, request, request.reason))

    @activity.defn(name=jobs.REVOKE_GRANT.name)
    async def revoke_grant(self, request: RevokeGrant) -> RevocationResult:
        """Revoke at the provider. Without a confirmation the result is a failure, never a success.

        Nothing is sent before the store says `revoking`, from when on no token is leased.
        """
        async with heartbeating():
            try:
                context = await self._load(request)
                connection = context.connection
                if connection.state.is_final:
                    outcome = connection.revocation or RevocationOutcome.NOTHING_HELD
                    return RevocationResult(revocation=outcome)
                if connection.state is not LifecycleState.REVOKING:
                    await commit_with_retries(
                        self._store, lambda tx: self._write_revoking(tx, request, _REPEATED_REASON)
                    )
                # a staged definition isn't relied on: the wrong endpoint may confirm, too
                ended = await self._revoke(request, context.without_staged_definition())
            except Exception as error:
                failure = as_failure(error)
                if failure.code is ErrorCode.INTERNAL:  # at once: its workflow retries ever more slowly
                    report_internal(failure)
                return await self._record_failure(request, failure)
            return await commit_with_retries(
                self._store, lambda tx: self._finish(tx, request, ended, connection.generation)
            )

    async def _load(self, request: RevokeGrant) -> ProviderContext:
        """The context; of a row that can't be read, or isn't authentic, once the store says `revoking`."""
        contexts = self._services.contexts
        try:
            return await contexts.load(request.tenant, request.connection_id)
        except (Failure, ValueError) as error:
            broken = (ErrorCode.INTERNAL, ErrorCode.AUTHORITY_BROKEN)
            if isinstance(error, Failure) and error.code not in broken:
                raise
            await commit_with_retries(
                self._store, lambda tx: self._write_revoking(tx, request, _REPEATED_REASON)
            )
            return await contexts.load(request.tenant, request.connection_id)

    async def _revoke(self, request: RevokeGrant, context: ProviderContext) -> _AtProvider:
        try:
            connection, tracker = context.connection, self._services.single_use.tracker
            credential = (connection.tenant, connection.id, connection.generation)
            async with (
                self._store.read() as tx
            ):  # a token that still arrives is installed, then revoked as well
                await tracker.require_no_open_attempt(tx, connection)
                superseded = await tx.attempts.superseded(*credential)
            if tracker.has_late_entry(superseded):
                raise tracker.pending("a token is still on its way")
            replaced, unrevoked = await self._revoke_replaced(request, context)
            lost = next(iter(await lost_uses(self._store, context)), None)
            sender = AnswersKept(self._services.sender)

            async def revoke_all(with_secret: ProviderContext) -> RevocationOutcome:
                return await self._revoke_all_tokens(sender, with_secret, lost)

            outcome, with_other_secret = await try_each_secret(context, revoke_all)
            if with_other_secret:
                await record_accepted_secret(self._store, self._clock, request, context)
            if unrevoked is not None:
                raise unrevoked
            outcome = worst((*replaced.outcomes, outcome))
        except Failure as failure:
            metrics.count(metrics.REVOCATIONS, failure.code, context.spec.name)
            raise
        metrics.count(metrics.REVOCATIONS, outcome, context.spec.name)
        return _AtProvider(outcome, replaced.refused, lost, sender.answers)

    async def _revoke_replaced(
        self, request: RevokeGrant, context: ProviderContext
    ) -> tuple[ReplacedRevocation, Failure | None]:
        """Also when that fails, the grant in use is revoked before the next try."""
        try:
            return await revoke_replaced(self._services, request, context, with_connection=True), None
        except Failure as failure:
            return ReplacedRevocation([], []), failure

    async def _revoke_all_tokens(
        self, sender: Sender, context: ProviderContext, lost: Attempt | None
    ) -> RevocationOutcome:
        """UNKNOWN at best where a use was `lost`, unless the provider ends the grant as a whole."""
        connection, grant = context.connection, context.grant
        async with self._store.read() as tx:
            rows = await tx.late_tokens.of_connection(connection.tenant, connection.id)
            late = [await tx.late_tokens.tokens(row) for row in rows]
        if grant is None and not late:
            return RevocationOutcome.NOTHING_HELD if lost is None else RevocationOutcome.UNKNOWN
        flow = connection.flow
        if context.endpoints.revocation_endpoint is None or flow.is_static or not flow.is_bearer:
            # a static credential is the subject's to take back; OAuth 1.0a has no revocation
            return RevocationOutcome.NOT_SUPPORTED
        # late tokens are unverified, and may be valid all the same
        outcomes = [await revoke_all_slots(sender, context, tokens) for tokens in late]
        if grant is not None:
            async with self._store.read() as tx:
                refresh_token = await tx.grants.refresh_token(connection)
                access_token = await tx.grants.access_token(connection)
            if lost is not None and grant.is_valid(self._clock.now()):
                older = lost.from_generation < connection.generation
                tokens = refresh_token, access_token
                if await revoke_by_grant(sender, context, *tokens, other_grants=older):
                    return worst((*outcomes, RevocationOutcome.CONFIRMED))
            outcomes.append(await revoke_at_provider(sender, context, refresh_token, access_token))
        return worst(outcomes if lost is None else (*outcomes, RevocationOutcome.UNKNOWN))

    async def _record_failure(self, request: RevokeGrant, failure: Failure) -> RevocationResult:
        if failure.code in RETRIED_BY_TEMPORAL:
            raise failure
        result = RevocationResult(failure=failure.code, retry_after=failure.retry_after)
        if failure.code is ErrorCode.REFRESH_PENDING:
            return result  # no revocation was sent yet

        detail = {"reason": failure.code, **log_words(failure, request.connection_id)}

        async def record(tx: Transaction) -> None:
            await append_audit(tx, request, AuditAction.REVOCATION_FAILED, self._clock.now(), **detail)

        await commit_with_retries(self._store, record)
        return result

    async def _write_revoking(
        self, tx: Transaction, request: BeginRevocation | RevokeGrant, reason: str
    ) -> Connection:
        """The connection as it is then; one that is already being revoked, or has ended, is unchanged."""
        now = self._clock.now()
        current = await tx.revocable_rows.connection(request.tenant, request.connection_id, now)
        if current is None:
            raise Failure(ErrorCode.NOT_FOUND, f"the row of {request.connection_id} is gone")
        if current.state is LifecycleState.REVOKING or current.state.is_final:
            return current
        revoking = current.revocation_requested(reason, now)
        await tx.connections.replace(revoking, expected=current.revision)
        await append_audit(tx, request, AuditAction.REVOCATION_REQUESTED, now, reason=reason)
        return revoking

    async def _finish(
        self, tx: Transaction, request: RevokeGrant, ended: _AtProvider, generation: int
    ) -> RevocationResult:
        """Write `revoked` and destroy the keys, if `generation` is still the current one."""
        now, outcome, lost = self._clock.now(), ended.outcome, ended.lost
        # what keeps a token to be revoked comes before, or finds that it has ended
        current = await load_connection(tx, request, locked=True)
        if current.state is LifecycleState.REVOKED:
            return RevocationResult(revocation=current.revocation)
        replaced = await tx.replaced_grants.of_connection(request.tenant, request.connection_id)
        unasked = {grant.id for grant in replaced} - {grant.id for grant in ended.refused}
        if (
            unasked or current.generation != generation
        ):  # a journaled reply was counted as lost, and was installed
            return RevocationResult(failure=ErrorCode.REFRESH_PENDING, retry_after=_RETRY_AFTER_S)
        revoking = await self._write_revoking(tx, request, _REPEATED_REASON)
        for grant in replaced:
            detail = {"generation": grant.generation, "old_revoked": False, "reason": "refused"}
            await append_audit(tx, request, AuditAction.GRANT_REPLACED, now, **detail)
        attempt = await open_attempt(tx, current)
        if attempt is not None:
            await tx.attempts.close(attempt, AttemptOutcome.SUPERSEDED, now)
        await tx.connections.replace(revoking.revocation_ended(outcome, now), expected=revoking.revision)
        destroyed = await tx.grants.shred(request.tenant, request.connection_id)
        detail: dict[str, object] = {"how": outcome, "keys_destroyed": destroyed}
        if ended.answers:
            detail["answers"] = ended.answers
        if outcome is RevocationOutcome.UNKNOWN:
            detail["reason"] = ErrorCode.OUTCOME_UNKNOWN
        if lost is not None:  # its tokens were never seen, and so never revoked
            detail["unread_attempt"] = lost.id
        await append_audit(tx, request, AuditAction.REVOKED, now, **detail)
        return RevocationResult(revocation=outcome)
