"""After a grant came: which accounts it reaches, asked of the provider, and which one is meant."""

from temporalio import activity

from activities.failures import grant_news
from activities.heartbeat import heartbeats
from activities.holdings import Holder, Holdings
from activities.records import connection_of, record, settled
from evergrant_server.core.account import FollowUp, Option
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.choice import LookUp
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import Grant
from evergrant_server.core.messages import ActivityName, GrantNews
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Tx
from providers.lookups import look_up, read_lookup


class FollowUpActivities:
    """Asks with the access token. Doing it twice changes nothing: the row says whether it is open."""

    def __init__(self, store: Store, holder: Holder, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.LOOK_UP)
    async def look_up_accounts(self, order: LookUp) -> GrantNews:
        """Says what holds now; with a failure the workflow asks again later."""
        async with heartbeats():
            try:
                held = await self._holder.take(order.tenant, order.connection_id)
                if held.grant is None or held.connection.follow_up is not FollowUp.LOOKING:
                    return GrantNews(generation=held.connection.generation, choosing=_choosing(held))
                return await self._found(order, held, held.grant)
            except Failure as failure:
                return grant_news(failure)

    async def _found(self, order: LookUp, held: Holdings, grant: Grant) -> GrantNews:
        if not grant.valid(self._clock.now()):
            raise Failure(Code.REFRESH_PENDING, "its access token is over: another one comes first")
        async with self._store.read() as tx:
            token = await tx.grants.access_token(held.connection)
        facts: dict[str, object] = {}
        options: tuple[Option, ...] = ()
        for lookup in held.spec.post_auth:
            reply = await look_up(
                self._egress, held.spec, lookup, token, held.integration.params, grant.metadata
            )
            read = read_lookup(held.spec, lookup, reply)
            if lookup.choose is None:
                facts |= read[0].metadata
            else:
                options = read
        return await settled(self._store, lambda tx: self._written(tx, order, held, facts, options))

    async def _written(
        self,
        tx: Tx,
        order: LookUp,
        held: Holdings,
        facts: dict[str, object],
        options: tuple[Option, ...],
    ) -> GrantNews:
        now = self._clock.now()
        current = await connection_of(tx, order)
        grant = await tx.grants.get(order.tenant, order.connection_id)
        looking = current.follow_up is FollowUp.LOOKING and current.state is State.ACTIVE
        if grant is None or not looking or current.generation != held.connection.generation:
            return GrantNews(generation=current.generation, look_up=looking)
        after, option = current, None
        if any(lookup.choose for lookup in held.spec.post_auth):
            after, option = current.found(options, now)
        else:
            after = current.model_copy(update={"follow_up": None, "changed_at": now})
        known = grant.metadata | facts | (option.metadata if option else {})
        saved = await tx.connections.replace(after, expected=current.revision)
        told = grant.model_copy(update={"metadata": known, "options": options})
        await tx.grants.tell(saved, told)
        if option is not None:
            await record(tx, order, AuditAction.ACCOUNT_CHOSEN, now, choice=option.id, of=len(options))
        elif after.follow_up is FollowUp.CHOOSING:
            await record(tx, order, AuditAction.CHOICE_ASKED, now, of=len(options))
        return held.news(saved, told)


def _choosing(held: Holdings) -> bool:
    return held.connection.follow_up is FollowUp.CHOOSING
