"""Revocation: the store first, then the provider, then `revoked` (RFC 7009)."""

import logging

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.grants.orphaned_tokens import all_slots, context_for_tokens
from activities.grants.provider_revocation import revoke_at_provider
from activities.single_use.protocol import open_attempt
from activities.support.failures import revocation_result_of
from activities.support.heartbeat import heartbeating
from activities.support.provider_activities import ProviderActivities
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import (
    ActivityName,
    BeginRevocation,
    RevocationResult,
    RevokeGrant,
)
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event, stack_frames

log = logging.getLogger("evergrant.activities")

_RETRY_AFTER_S = 3.0
_BEST_FIRST = (
    RevocationOutcome.CONFIRMED,
    RevocationOutcome.ACCESS_TOKEN_ONLY,
    RevocationOutcome.NOT_SUPPORTED,
)
_RESTORED_REASON = "asked for before, and the store came from an older backup"


class RevocationActivities(ProviderActivities):
    """Tells the provider for as long as it takes, and shreds what is left."""

    @activity.defn(name=ActivityName.BEGIN_REVOCATION)
    async def record_revocation_request(self, order: BeginRevocation) -> None:
        """Write `revoking`, unless the API already has."""

        async def ask(tx: Transaction) -> None:
            now = self._clock.now()
            current = await load_connection(tx, order)
            if current.state is LifecycleState.REVOKING or current.state.is_final:
                return
            await tx.connections.replace(
                current.revocation_requested(order.reason, now), expected=current.revision
            )
            await append_audit(tx, order, AuditAction.REVOCATION_REQUESTED, now, reason=order.reason)

        await commit_with_retries(self._store, ask)

    @activity.defn(name=ActivityName.REVOKE_GRANT)
    async def revoke_grant(self, order: RevokeGrant) -> RevocationResult:
        """Revoke at the provider. Without a confirmation the news carry a failure, never a success."""
        async with heartbeating():
            try:
                held = await self._contexts.load(order.tenant, order.connection_id)
                if held.connection.state.is_final:
                    return RevocationResult(
                        revocation=held.connection.revocation or RevocationOutcome.NOTHING_HELD
                    )
                how = await self._try_revocation(
                    order, held.without_staged_definition()
                )  # a wrong endpoint would say yes, too
            except Failure as failure:
                return await self._record_failure(order, failure)
            except Exception as unexpected:
                # its text may quote anything; tried again ever more slowly, as what has a name
                what = f"revoke_grant: {type(unexpected).__name__} at {stack_frames(unexpected)[-1]}"
                log_event(log, logging.ERROR, LogEvent.ACTIVITY_FAILED, what, object=order.connection_id)
                return await self._record_failure(order, Failure(ErrorCode.INTERNAL))
            return await self._finish(order, how, held.connection.generation)

    async def _try_revocation(self, order: RevokeGrant, held: ProviderContext) -> RevocationOutcome:
        try:
            await self._require_no_open_attempt(held)
            how = await self._revoke_with_either_secret(order, held)
        except Failure as failure:
            metrics.count_revocation(held.spec.name, failure.code)
            raise
        metrics.count_revocation(held.spec.name, how)
        return how

    async def _revoke_with_either_secret(
        self, order: RevokeGrant, held: ProviderContext
    ) -> RevocationOutcome:
        how, other = await try_each_secret(held, self._revoke_at_provider)
        if other:
            await self._client_secrets.record_accepted_secret(order, held)
        return how

    async def _require_no_open_attempt(self, held: ProviderContext) -> None:
        """A token that is still on its way must land first, so that it can be revoked too."""
        its = held.connection
        async with self._store.read() as tx:
            attempt = await open_attempt(tx, its)
            taken_over = await tx.attempts.superseded(its.tenant, its.id, its.generation)
        may_come = attempt is not None and self._single_use.may_be_answered(attempt)
        if may_come or self._single_use.has_late_entry(taken_over):
            raise Failure(
                ErrorCode.REFRESH_PENDING, "a token is still on its way", retry_after=_RETRY_AFTER_S
            )

    async def _revoke_at_provider(self, held: ProviderContext) -> RevocationOutcome:
        late = await self._late_tokens(held)
        if held.grant is None and not late:
            return RevocationOutcome.NOTHING_HELD
        flow = held.connection.flow
        if held.endpoints.revocation_endpoint is None or flow.is_static or not flow.is_bearer:
            # a key that somebody brought is theirs to take back; OAuth 1.0a has no revocation
            return RevocationOutcome.NOT_SUPPORTED
        # late ones are not believed, and perhaps alive all the same
        told = [
            await self._revoke_tokens(context_for_tokens(held, it), it.refresh_token, it.access_token)
            for it in late
        ]
        if held.grant is not None:
            async with self._store.read() as tx:
                refresh_token = await tx.grants.refresh_token(held.connection)
                access_token = await tx.grants.access_token(held.connection)
            told.append(await self._revoke_tokens(held, refresh_token, access_token))
        return max(told, key=_BEST_FIRST.index)

    async def _revoke_tokens(
        self, held: ProviderContext, refresh_token: Secret | None, access_token: Secret
    ) -> RevocationOutcome:
        brought = held.connection.flow.is_client_grant  # to be exchanged: that is not ours to end
        return await revoke_at_provider(self._sender, held, None if brought else refresh_token, access_token)

    async def _late_tokens(self, held: ProviderContext) -> list[TokenSet]:
        async with self._store.read() as tx:
            found = await tx.late_tokens.of_connection(held.connection.tenant, held.connection.id)
            return [it for late in found for it in all_slots(await tx.late_tokens.tokens(late))]

    async def _record_failure(self, order: RevokeGrant, failure: Failure) -> RevocationResult:
        news = revocation_result_of(failure)
        if failure.code is ErrorCode.REFRESH_PENDING:
            return news  # nothing was tried yet

        async def note(tx: Transaction) -> None:
            await append_audit(
                tx, order, AuditAction.REVOCATION_FAILED, self._clock.now(), reason=failure.code
            )

        await commit_with_retries(self._store, note)
        return news

    async def _finish(self, order: RevokeGrant, how: RevocationOutcome, told: int) -> RevocationResult:
        """Shred what the provider was told of: the generation `told`, and nothing that came meanwhile."""

        async def done(tx: Transaction) -> RevocationResult:
            now = self._clock.now()
            current = await load_connection(tx, order)
            if current.state is LifecycleState.REVOKED:
                return RevocationResult(revocation=current.revocation)
            if current.generation != told:  # a journal's answer was taken for lost, and landed all the same
                return RevocationResult(failure=ErrorCode.REFRESH_PENDING, retry_after=_RETRY_AFTER_S)
            attempt = await open_attempt(tx, current)
            if attempt is not None:
                await tx.attempts.close(attempt, AttemptOutcome.SUPERSEDED, now)
            asked = (
                current
                if current.state is LifecycleState.REVOKING
                else current.revocation_requested(_RESTORED_REASON, now)
            )
            await tx.connections.replace(asked.revocation_ended(how, now), expected=current.revision)
            destroyed = await tx.grants.shred(order.tenant, order.connection_id)
            said = {"how": how, "keys_destroyed": destroyed}
            lost = attempt or await tx.attempts.unread_at_generation(order.tenant, order.connection_id, told)
            if lost is not None:  # a token that came with it was never seen, and so never revoked
                said["answer_lost"] = lost.id
            await append_audit(tx, order, AuditAction.REVOKED, now, **said)
            return RevocationResult(revocation=how)

        return await commit_with_retries(self._store, done)
