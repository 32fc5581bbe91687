"""The next part of a bulk order: its connections are listed, and each is refreshed, revoked, labelled, or its
apps are told that its subject has to consent again.

Waves, pauses and what is left after a kill are those of an incident. A refresh is the connection's own
workflow's, at a priority behind callers, and takes the turn of its tenant and integration.
"""

from datetime import timedelta

from temporalio import activity

from activities.incidents.rows import Rows, Waves, chunks, for_a_while, reason_of
from activities.incidents.selecting import listed_item
from activities.support.temporal import heartbeating
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.bulk import BulkAction, BulkOrder
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.incidents import (
    IncidentItem,
    IncidentState,
    ItemOutcome,
    ItemStep,
    outcome_of_revocation,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.connection import Revoke, Rotate
from evergrant_server.core.messages.incidents import BulkCall, IncidentProgress
from evergrant_server.core.messages.names import SignalName
from evergrant_server.store import Store, Transaction
from evergrant_server.store.connections.incidents import ListedConnection
from evergrant_server.store.connections.search import ConnectionFilter, ConnectionSearch, ListOrder

_LISTED_AT_ONCE = 200
_LOOKED_AT = 100  # connections of one look
_WAVE, _WAVE_S = 25, timedelta(minutes=1)
_PLACE = ("id", "integration", "subject", "label")
_TOLD = (BulkAction.REFRESH, BulkAction.REVOKE)  # whose connections' workflows do the work


class BulkActivities:
    """`page`: connections in one transaction; `wave` and `wave_s`: how many of an integration are under way,
    and how long the others wait for one."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        page: int = 20,
        wave: int = _WAVE,
        wave_s: timedelta = _WAVE_S,
    ) -> None:
        self._store, self._clock = store, clock
        self._page, self._wave, self._wave_s = page, wave, wave_s

    @activity.defn(name=jobs.ADVANCE_BULK.name)
    async def advance_bulk(self, call: BulkCall) -> IncidentProgress:
        """Do what is next, for a while. The order in the store says what: without one, nothing is done."""
        async with heartbeating():
            async with self._store.read() as tx:
                order = await tx.bulk_orders.get(call.tenant, call.bulk_id)
            if order is None:
                return IncidentProgress(state=IncidentState.DONE)
            rows = Rows(self._store, self._clock, call)
            work = BulkWork(rows, Waves(rows, self._wave, self._wave_s), self._page)
            _, progress = await for_a_while(order, work.advance, self._clock.now)
            return progress


class BulkWork:
    """What one call does of its order."""

    def __init__(self, rows: Rows, waves: Waves, page: int) -> None:
        self._rows, self._waves, self._page = rows, waves, page

    async def advance(self, order: BulkOrder) -> BulkOrder:
        """The order after one more page or look."""
        if order.state is IncidentState.SELECTING:
            return await self._select(order)
        return await self._rows.move(order, self._look)

    async def _select(self, order: BulkOrder) -> BulkOrder:
        """List the next connections, and go on behind them."""
        ids, after = await self._candidates(order)
        for some in chunks(ids, self._page):

            async def add(tx: Transaction, current: BulkOrder, some: list[ConnectionId] = some) -> BulkOrder:
                return await self._list(tx, current, some)

            order = await self._rows.move(order, add)
            if order.paused:
                return order

        async def go_on(_: Transaction, current: BulkOrder) -> BulkOrder:
            return current.following() if after is None else current.__replace__(after=after)

        return await self._rows.move(order, go_on)

    async def _candidates(self, order: BulkOrder) -> tuple[list[ConnectionId], str | None]:
        """Ids of the next connections, and the place behind them; None: there are no more."""
        wanted = order.filters
        if wanted.connections is not None:
            return list(wanted.connections), None
        narrowed = ConnectionFilter(
            wanted.integration,
            state=wanted.state,
            search=wanted.subject,
            failing=wanted.failing,
            live=wanted.state is None,
        )
        by = ListOrder.ID if wanted.state is None and not wanted.failing else ListOrder.URGENCY
        async with self._rows.store.read() as tx:
            search = ConnectionSearch(tx.connection, order.tenant)
            page = await search.page(narrowed, by, order.after or None, _LISTED_AT_ONCE, _PLACE)
        ids = [ConnectionId(placed.row["id"]) for placed in page]
        return ids, page[-1].place if len(page) == _LISTED_AT_ONCE else None

    async def _list(self, tx: Transaction, order: BulkOrder, ids: list[ConnectionId]) -> BulkOrder:
        places = await tx.incident_items.places(order.tenant, ids)
        uses = await tx.incident_items.last_uses(order.tenant, ids)
        added = [await tx.incident_items.add(listed_item(order, place, uses)) for place in places]
        return order.__replace__(selected=order.selected + sum(added))

    async def _look(self, tx: Transaction, order: BulkOrder) -> BulkOrder:
        """Note what has become of connections, and have the next ones' turn come."""
        noted = await self._note(tx, order)
        after = order.with_ended(noted)
        if len(noted) >= _LOOKED_AT:
            return after.__replace__(idle=0)
        if order.action in _TOLD:
            turns = await self._waves.next(tx, order, ItemStep.LISTED)
        else:
            turns = await tx.incident_items.next_at(order, ItemStep.LISTED, self._page)
        settled = [outcome for item in turns if (outcome := await self._act(tx, order, item)) is not None]
        after = after.with_ended(settled)
        is_open = await tx.incident_items.any_open(order)
        if not is_open or (self._rows.is_over(order) and not turns):
            return await self._finish(tx, after)
        if settled:
            return after.__replace__(idle=0)
        return after.__replace__(idle=1 if noted or turns else order.idle + 1)

    async def _note(self, tx: Transaction, order: BulkOrder) -> list[ItemOutcome]:
        """End the rows of connections whose workflows have done it, or have failed to."""
        ended: list[tuple[IncidentItem, ItemOutcome]] = []
        if order.action is BulkAction.REVOKE:
            for item, revocation in await tx.incident_items.revoked(order, _LOOKED_AT):
                ended.append((item, outcome_of_revocation(revocation)))
        elif order.action is BulkAction.REFRESH:
            changed = await tx.incident_items.changed(order, _LOOKED_AT)
            ended += [(connection.item, _after_refresh(connection)) for connection in changed]
            known = {item.connection_id for item, _ in ended}
            failed = await tx.incident_items.failed(order, _LOOKED_AT)
            ended += [(item, ItemOutcome.FAILED) for item in failed if item.connection_id not in known]
        for item, outcome in ended:
            await self._rows.end(tx, item, outcome)
        return [outcome for _, outcome in ended]

    async def _act(self, tx: Transaction, order: BulkOrder, item: IncidentItem) -> ItemOutcome | None:
        """Do it to the connection. None: its workflow is told; else the outcome."""
        outcome = await self._begun(tx, order, item)
        if outcome is not None:
            await self._rows.end(tx, item, outcome)
        return outcome

    async def _begun(self, tx: Transaction, order: BulkOrder, item: IncidentItem) -> ItemOutcome | None:
        if order.action is BulkAction.REVOKE:
            return await self._revoke(tx, order, item)
        try:
            connection = await tx.connections.get_authentic(order.tenant, item.connection_id)
        except Failure as failure:
            if failure.code not in (ErrorCode.AUTHORITY_BROKEN, ErrorCode.INTERNAL):
                raise
            return ItemOutcome.FAILED  # who may change it isn't Evergrant's word: doctor names the row
        if connection is None or connection.has_ended:
            return ItemOutcome.GONE
        match order.action:
            case BulkAction.REFRESH:
                return await self._refresh(tx, order, item, connection)
            case _ if connection.held_by is not None:
                return ItemOutcome.HELD
            case BulkAction.RECONNECT:
                return await self._ask(tx, order, connection)
            case _:
                return await self._label(tx, order, connection)

    async def _revoke(self, tx: Transaction, order: BulkOrder, item: IncidentItem) -> ItemOutcome | None:
        """Write `revoking`, from whose commit on no token is leased, and tell the workflow."""
        now, reason = self._rows.now, reason_of(order)
        connection = await tx.revocable_rows.connection(order.tenant, item.connection_id, now)
        if connection is None:
            return ItemOutcome.GONE
        if connection.state.is_final:
            return outcome_of_revocation(connection.revocation)
        if not connection.has_ended:
            requested = connection.revocation_requested(reason, now)
            await tx.connections.replace(requested, expected=connection.revision)
            detail = {"reason": reason, "bulk": order.id}
            await self._rows.record(tx, order, AuditAction.REVOCATION_REQUESTED, connection.id, **detail)
        message = Revoke(reason=reason, context=self._rows.context(order))
        await self._rows.tell(tx, order, item, SignalName.REVOKE, message)
        return None

    async def _refresh(
        self, tx: Transaction, order: BulkOrder, item: IncidentItem, connection: Connection
    ) -> ItemOutcome | None:
        if connection.state is LifecycleState.PENDING_CONSENT:
            return ItemOutcome.NOTHING_HELD
        if connection.state is LifecycleState.NEEDS_REAUTH:
            return ItemOutcome.RECONNECT
        grant = await tx.grants.get(order.tenant, connection.id)
        if grant is None or not grant.refreshable:
            return ItemOutcome.NOT_SUPPORTED
        seen, context = connection.generation, self._rows.context(order)
        message = Rotate(reason=reason_of(order), seen_generation=seen, context=context)
        told = item.__replace__(generation=seen)
        await self._rows.tell(tx, order, told, SignalName.ROTATE, message)
        return None

    async def _ask(self, tx: Transaction, order: BulkOrder, connection: Connection) -> ItemOutcome:
        """Publish once more that the subject has to consent: only its app makes a link for it."""
        if connection.state is not LifecycleState.NEEDS_REAUTH:
            return ItemOutcome.WELL
        detail = {"bulk": order.id, "reason": connection.reason}
        await self._rows.record(tx, order, AuditAction.RECONNECT_REQUESTED, connection.id, **detail)
        return ItemOutcome.ASKED

    async def _label(self, tx: Transaction, order: BulkOrder, connection: Connection) -> ItemOutcome:
        label = order.label or connection.label
        if connection.label == label:
            return ItemOutcome.LABELLED
        if connection.consented_with is not None or connection.slot_scopes:
            return ItemOutcome.NOT_SUPPORTED  # its label names a slot of the consent
        names = (order.tenant, connection.integration, connection.subject)
        holder = await tx.connections.by_names(*names, label)
        if holder is not None and not holder.state.is_final:
            return ItemOutcome.TAKEN
        after = connection.__replace__(label=label)
        await tx.connections.replace_names(after, expected=connection.revision)
        detail = {"bulk": order.id, "before": connection.label, "label": label}
        await self._rows.record(tx, order, AuditAction.RELABELLED, connection.id, **detail)
        return ItemOutcome.LABELLED

    async def _finish(self, tx: Transaction, order: BulkOrder) -> BulkOrder:
        detail = {"action": order.action, "connections": order.selected, "outcomes": order.outcomes}
        await self._rows.record(tx, order, AuditAction.BULK_ENDED, order.id, **detail)
        return order.following().done().__replace__(finished_at=self._rows.now)


def _after_refresh(connection: ListedConnection) -> ItemOutcome:
    """What has become of a connection that was told to refresh."""
    if connection.generation > connection.item.generation:
        return ItemOutcome.RENEWED
    if connection.state == LifecycleState.NEEDS_REAUTH:
        return ItemOutcome.RECONNECT
    return ItemOutcome.GONE
