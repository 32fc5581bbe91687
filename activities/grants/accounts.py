"""After a grant came: which accounts it reaches, asked of the provider, and which one is meant."""

from temporalio import activity

from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.account import AccountOption, FollowUp
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.account_choice import LookUpAccounts
from evergrant_server.core.messages.connection import ActivityName, GrantResult
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.responses.accounts import read_lookup, send_lookup


class AccountActivities:
    """Asks with the access token. Doing it twice changes nothing: the row says whether it is open."""

    def __init__(self, store: Store, holder: ProviderContextLoader, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.LOOK_UP_ACCOUNTS)
    async def look_up_accounts(self, order: LookUpAccounts) -> GrantResult:
        """Says what holds now; with a failure the workflow asks again later."""
        async with heartbeating():
            try:
                held = await self._holder.load(order.tenant, order.connection_id)
                if held.grant is None or held.connection.follow_up is not FollowUp.LOOKING_UP:
                    return GrantResult(generation=held.connection.generation, choosing=_awaits_choice(held))
                return await self._look_up(order, held, held.grant)
            except Failure as failure:
                return failed_grant_result(failure)

    async def _look_up(self, order: LookUpAccounts, held: ProviderContext, grant: Grant) -> GrantResult:
        if not grant.is_valid(self._clock.now()):
            raise Failure(ErrorCode.REFRESH_PENDING, "its access token is over: another one comes first")
        async with self._store.read() as tx:
            token = await tx.grants.access_token(held.connection)
        facts: dict[str, object] = {}
        options: tuple[AccountOption, ...] = ()
        for lookup in held.spec.post_auth:
            reply = await send_lookup(
                self._egress, held.spec, lookup, token, held.integration.params, grant.metadata
            )
            read = read_lookup(held.spec, lookup, reply)
            if lookup.choose is None:
                facts |= read[0].metadata
            else:
                options = read
        return await commit_with_retries(
            self._store, lambda tx: self._write_accounts(tx, order, held, facts, options)
        )

    async def _write_accounts(
        self,
        tx: Transaction,
        order: LookUpAccounts,
        held: ProviderContext,
        facts: dict[str, object],
        options: tuple[AccountOption, ...],
    ) -> GrantResult:
        now = self._clock.now()
        current = await load_connection(tx, order)
        grant = await tx.grants.get(order.tenant, order.connection_id)
        looking = current.follow_up is FollowUp.LOOKING_UP and current.state is LifecycleState.ACTIVE
        if grant is None or not looking or current.generation != held.connection.generation:
            return GrantResult(generation=current.generation, look_up=looking)
        after, option = current, None
        if any(lookup.choose for lookup in held.spec.post_auth):
            after, option = current.accounts_found(options, now)
        else:
            after = current.model_copy(update={"follow_up": None, "changed_at": now})
        known = grant.metadata | facts | (option.metadata if option else {})
        saved = await tx.connections.replace(after, expected=current.revision)
        told = grant.model_copy(update={"metadata": known, "options": options})
        await tx.grants.update_facts(saved, told)
        if option is not None:
            await append_audit(tx, order, AuditAction.ACCOUNT_CHOSEN, now, choice=option.id, of=len(options))
        elif after.follow_up is FollowUp.CHOOSING:
            await append_audit(tx, order, AuditAction.ACCOUNT_CHOICE_REQUESTED, now, of=len(options))
        return held.grant_result(saved, told)


def _awaits_choice(held: ProviderContext) -> bool:
    return held.connection.follow_up is FollowUp.CHOOSING
