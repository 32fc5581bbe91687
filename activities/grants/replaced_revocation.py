"""Revokes replaced grants at their provider, each with a commit of its own."""

from dataclasses import dataclass

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.client_secrets import try_each_secret
from activities.grants.provider_revocation import lost_uses, revoke_all_slots
from activities.grants.replaced_grants import is_revocable
from activities.support.provider_context import ProviderContext
from activities.support.temporal import RETRIED_BY_TEMPORAL, as_failure, heartbeating, report_internal
from activities.support.transactions import append_audit, commit_with_retries, log_words
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import ReplacedGrant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import (
    ConnectionCall,
    ReplacedRevocationResult,
    RevokeReplacedGrants,
)
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.responses.error_mapping import is_token_refused


@dataclass(frozen=True)
class ReplacedRevocation:
    """How each revocation ended; `refused` are those whose tokens the provider doesn't take for valid."""

    outcomes: list[RevocationOutcome]
    refused: list[ReplacedGrant]


class ReplacedGrantActivities:
    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @activity.defn(name=jobs.REVOKE_REPLACED_GRANTS.name)
    async def revoke_replaced_grants(self, request: RevokeReplacedGrants) -> ReplacedRevocationResult:
        """Revoke what is pending. A failure is the result: the workflow tries again."""
        services, revoked = self._services, 0
        async with heartbeating():
            try:
                context = await services.contexts.load(request.tenant, request.connection_id)
                done = await revoke_replaced(services, request, context.without_staged_definition())
                revoked = len(done.outcomes)
            except Exception as error:
                failure = as_failure(error)
                if failure.code is ErrorCode.INTERNAL:
                    report_internal(failure)
                return await self._record_failure(request, failure)
        return ReplacedRevocationResult(revoked=revoked)

    async def _record_failure(
        self, request: RevokeReplacedGrants, failure: Failure
    ) -> ReplacedRevocationResult:
        if failure.code in RETRIED_BY_TEMPORAL:
            raise failure

        words = log_words(failure, request.connection_id)
        detail = {"reason": failure.code, "replaced": True, **words}

        async def record(tx: Transaction) -> None:
            now, action = self._services.clock.now(), AuditAction.REVOCATION_FAILED
            await append_audit(tx, request, action, now, **detail)

        await commit_with_retries(self._services.store, record)
        return ReplacedRevocationResult(failure=failure.code, retry_after=failure.retry_after)


async def revoke_replaced(
    services: GrantServices, call: ConnectionCall, context: ProviderContext, *, with_connection: bool = False
) -> ReplacedRevocation:
    """Revoke the pending ones, or all of them together `with_connection`.

    Raises the first Failure once each was tried, or the provider doesn't answer.
    """
    async with services.store.read() as tx:
        rows = await tx.replaced_grants.of_connection(call.tenant, call.connection_id)
    done = ReplacedRevocation([], [])
    first: Failure | None = None
    for row in rows:
        if not (row.pending or with_connection):
            continue
        try:
            own = await _with_client_of(services, context, row)
            if own is None:
                await _write(services, call, row, how=RevocationOutcome.UNKNOWN)
                done.outcomes.append(RevocationOutcome.UNKNOWN)
                continue
            done.outcomes.extend(await _revoke_one(services, call, own, row, with_connection))
        except Failure as failure:
            if is_token_refused(failure):
                done.refused.append(row)
                if not with_connection:
                    words = log_words(failure, call.connection_id)
                    detail = {"old_revoked": False, "reason": failure.code, **words}
                    await _write(services, call, row, keep=True, **detail)
                continue
            first = first or failure
            if failure.code is ErrorCode.PROVIDER_UNREACHABLE:
                break
    if first is not None:
        raise first
    return done


async def _with_client_of(
    services: GrantServices, context: ProviderContext, row: ReplacedGrant
) -> ProviderContext | None:
    """The context with the client that has got these tokens; None: it is gone, and no other can end them."""
    if row.integration_id == context.integration.id:
        return context
    async with services.store.read() as tx:
        if await tx.integrations.get_unchecked(row.tenant, row.integration_id) is None:
            return None
    older = await services.contexts.load(row.tenant, row.connection_id, row.integration_id)
    return older.without_staged_definition()


async def _revoke_one(
    services: GrantServices,
    call: ConnectionCall,
    context: ProviderContext,
    row: ReplacedGrant,
    with_connection: bool,
) -> list[RevocationOutcome]:
    """The outcome, or none: a grant in use would end as well, or the tokens can't be opened."""
    if with_connection and context.endpoints.revocation_endpoint is None:
        await _write(services, call, row, how=RevocationOutcome.NOT_SUPPORTED)
        return [RevocationOutcome.NOT_SUPPORTED]
    async with services.store.read() as tx:
        allowed = await is_revocable(tx, context, row, with_connection=with_connection)
    if not allowed:
        await _write(services, call, row, keep=not with_connection, old_revoked=False, reason="in_use")
        return []
    try:
        async with services.store.read() as tx:
            tokens = await tx.replaced_grants.tokens(row)
    except Failure as failure:
        if failure.code is not ErrorCode.SEAL_BROKEN:
            raise
        await _write(services, call, row, old_revoked=False, reason=failure.code)
        return []
    outcome = await _revoke_tokens(services, context, tokens)
    if outcome is RevocationOutcome.CONFIRMED and not with_connection:
        lost = await lost_uses(services.store, context)
        if any(use.from_generation == row.generation for use in lost):  # its successor may live on
            outcome = RevocationOutcome.UNKNOWN
    metrics.count(metrics.REVOCATIONS, outcome, context.spec.name)
    await _write(services, call, row, how=outcome)
    return [outcome]


async def _revoke_tokens(
    services: GrantServices, context: ProviderContext, tokens: TokenSet
) -> RevocationOutcome:
    async def revoke(with_secret: ProviderContext) -> RevocationOutcome:
        return await revoke_all_slots(services.sender, with_secret, tokens)

    return (await try_each_secret(context, revoke))[0]


async def _write(
    services: GrantServices, call: ConnectionCall, row: ReplacedGrant, *, keep: bool = False, **detail: object
) -> None:
    """Record what became of it, once; it is forgotten, or kept for its connection's revocation."""

    async def record(tx: Transaction) -> None:
        grants, now = tx.replaced_grants, services.clock.now()
        stored = await grants.get(row.tenant, row.id)
        if stored is None:
            return  # by another try, or with its connection
        if keep:
            kept = stored.__replace__(pending=False)
            await grants.replace(kept, expected=stored.revision)
        else:
            await grants.delete(row.tenant, row.connection_id, row.id)
        action = AuditAction.REPLACED_GRANT_REVOKED if "how" in detail else AuditAction.GRANT_REPLACED
        await append_audit(tx, call, action, now, generation=row.generation, **detail)

    await commit_with_retries(services.store, record)
