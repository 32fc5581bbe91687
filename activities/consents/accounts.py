"""Accounts: asks the provider which ones a new grant reaches, and chooses the requested one."""

from temporalio import activity

from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.temporal import failed_grant_result, heartbeating, internal_after_last_try
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import AccountOption, FollowUp, Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, LookUpAccounts
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.requests.accounts import read_lookup, send_lookup


class AccountActivities:
    """Looks accounts up with the access token. Idempotent: the row says whether a lookup is due."""

    def __init__(self, store: Store, contexts: ProviderContextLoader, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._contexts = contexts
        self._egress = egress
        self._clock = clock

    @activity.defn(name=jobs.LOOK_UP_ACCOUNTS.name)
    async def look_up_accounts(self, request: LookUpAccounts) -> GrantResult:
        """Return what the store holds afterwards; after a failure the workflow tries again later."""
        async with heartbeating():
            try:
                with internal_after_last_try():
                    context = await self._contexts.load(request.tenant, request.connection_id)
                    if context.grant is None or context.connection.follow_up is not FollowUp.LOOKING_UP:
                        choosing = context.connection.follow_up is FollowUp.CHOOSING
                        return GrantResult(generation=context.connection.generation, choice_pending=choosing)
                    return await self._look_up(request, context, context.grant)
            except Failure as failure:
                return failed_grant_result(failure)

    async def _look_up(self, request: LookUpAccounts, context: ProviderContext, grant: Grant) -> GrantResult:
        if not grant.is_valid(self._clock.now()):
            raise Failure(ErrorCode.REFRESH_PENDING, "its access token has expired: a refresh comes first")
        async with self._store.read() as tx:
            token = await tx.grants.access_token(context.connection)
        metadata_found: dict[str, object] = {}
        options: tuple[AccountOption, ...] = ()
        for lookup in context.spec.post_auth:
            reply = await send_lookup(
                self._egress, context.spec, lookup, token, context.integration.params, grant.metadata
            )
            accounts = read_lookup(context.spec, lookup, reply)
            if lookup.choose is None:
                metadata_found |= accounts[0].metadata
            else:
                options = accounts
        return await commit_with_retries(
            self._store, lambda tx: self._write_accounts(tx, request, context, metadata_found, options)
        )

    async def _write_accounts(
        self,
        tx: Transaction,
        request: LookUpAccounts,
        context: ProviderContext,
        metadata_found: dict[str, object],
        options: tuple[AccountOption, ...],
    ) -> GrantResult:
        now = self._clock.now()
        current = await load_connection(tx, request)
        grant = await tx.grants.get_authentic(current)
        looking = current.follow_up is FollowUp.LOOKING_UP and current.state is LifecycleState.ACTIVE
        if grant is None or not looking or current.generation != context.connection.generation:
            return GrantResult(generation=current.generation, account_lookup_needed=looking)
        after, option = current, None
        if any(lookup.choose for lookup in context.spec.post_auth):
            after, option = current.accounts_found(options, now)
        else:
            after = current.__replace__(follow_up=None, changed_at=now)
        metadata = grant.metadata | metadata_found | (option.metadata if option else {})
        saved = await tx.connections.replace(after, expected=current.revision)
        updated = grant.__replace__(metadata=metadata, options=options)
        await tx.grants.update_facts(saved, updated)
        if option is not None:
            detail = {"choice": option.id, "of": len(options)}
            await append_audit(tx, request, AuditAction.ACCOUNT_CHOSEN, now, **detail)
        elif after.follow_up is FollowUp.CHOOSING:
            await append_audit(tx, request, AuditAction.ACCOUNT_CHOICE_REQUESTED, now, of=len(options))
        return context.grant_result(saved, updated)
