"""What every step of an incident or a bulk order has in common: its row, its records, messages to
connections, and how long a worker goes on."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.bulk import BulkOrder
from evergrant_server.core.connections.incidents import (
    ConnectionsOrder,
    Incident,
    IncidentItem,
    IncidentKind,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, OutboxId, derived_id
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.incidents import BulkCall, IncidentCall, IncidentProgress
from evergrant_server.core.outbox import signal_message
from evergrant_server.store import Store, Transaction

T = TypeVar("T")
OrderT = TypeVar("OrderT", bound=ConnectionsOrder[Any])

WORK_S = 10.0  # of one try; then the workflow calls again
_MOST_TOLD = 100  # in one transaction


class Rows:
    """The rows of the order that a call is about."""

    def __init__(self, store: Store, clock: Clock, call: IncidentCall | BulkCall) -> None:
        self.store, self.clock, self._call = store, clock, call

    @property
    def now(self) -> datetime:
        return self.clock.now()

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await commit_with_retries(self.store, work)

    async def move(self, state: OrderT, work: Callable[[Transaction, OrderT], Awaitable[OrderT]]) -> OrderT:
        """Do `work` with the row as it is now, and write what it returns, in one transaction. A row that has
        been paused, or is in another state by now, is returned as it is."""

        async def write(tx: Transaction) -> OrderT:
            orders: Any = tx.bulk_orders if isinstance(state, BulkOrder) else tx.incidents
            current: OrderT | None = await orders.get(state.tenant, state.id)
            if current is None:
                raise Failure(ErrorCode.NOT_FOUND, f"the row of {state.id} is gone")
            if current.state is not state.state or current.paused:
                return current
            after = await work(tx, current)
            if after == current:
                return current
            return await orders.replace(after, expected=current.revision)

        return await self.write(write)

    async def held(self, _: Transaction, incident: Incident) -> Incident:
        """The next state once the grace is over; until then the connections can be put back."""
        return incident if incident.wait_s(self.now) else incident.following()

    def context(self, order: ConnectionsOrder[Any]) -> RequestContext:
        """The requester of what is done for it: who has ordered it."""
        return RequestContext(by=order.by, trace_id=self._call.context.trace_id)

    async def record(
        self,
        tx: Transaction,
        order: ConnectionsOrder[Any],
        action: AuditAction,
        object_id: str,
        /,
        **detail: object,
    ) -> None:
        entry = AuditEntry(
            tenant=order.tenant,
            at=self.now,
            action=action,
            object=object_id,
            context=self.context(order),
            detail=detail,
            provenance=self._call.provenance,
        )
        await audit.append(tx, entry)

    async def tell(
        self, tx: Transaction, order: ConnectionsOrder[Any], item: IncidentItem, name: str, message: Message
    ) -> None:
        """Signal the connection's workflow, once for the order, and note that it was told."""
        await self.signal(tx, order, item, name, message)
        told = item.__replace__(step=ItemStep.TOLD, told_at=self.now)
        await tx.incident_items.replace(told, expected=item.revision)

    async def signal(
        self, tx: Transaction, order: ConnectionsOrder[Any], item: IncidentItem, name: str, message: Message
    ) -> None:
        """Signal the connection's workflow, once for the order."""
        id = OutboxId(derived_id("out", order.id, name, item.connection_id))
        signal = signal_message(order.tenant, item.connection_id, name, message, self.now)
        await tx.outbox.add_once(signal.__replace__(id=id))

    async def end(self, tx: Transaction, item: IncidentItem, outcome: ItemOutcome) -> None:
        ended = item.__replace__(step=ItemStep.ENDED, outcome=outcome)
        await tx.incident_items.replace(ended, expected=item.revision)

    def is_over(self, order: ConnectionsOrder[Any]) -> bool:
        """Whether it is reported once each was told, with what is still under way."""
        return self.now >= order.waits_until


class Waves:
    """How many connections of an integration are told at a time: a provider gets their requests."""

    def __init__(self, rows: Rows, size: int, longest: timedelta) -> None:
        self._rows, self._size, self._longest = rows, size, longest

    async def next(self, tx: Transaction, order: ConnectionsOrder[Any], step: ItemStep) -> list[IncidentItem]:
        """Connections at this step whose turn it is. One that takes long keeps its place for a while; at the
        end of the order's time all that are left have theirs."""
        under_way = await tx.incident_items.told_since(order, self._rows.now - self._longest)
        turns: list[IncidentItem] = []
        over = self._rows.is_over(order)
        for integration in await tx.incident_items.integrations_at(order, step):
            room = _MOST_TOLD if over else self._size - under_way.get(integration, 0)
            room = min(room, _MOST_TOLD - len(turns))
            if room > 0:
                turns += await tx.incident_items.next_at(order, step, room, integration)
        return turns


async def for_a_while(
    order: OrderT, advance: Callable[[OrderT], Awaitable[OrderT]], now: Callable[[], datetime]
) -> tuple[OrderT, IncidentProgress]:
    """Advance the order until it rests, or a worker has worked for long enough; how far it is then."""
    ends, wait = seconds_since_boot() + WORK_S, 0.0
    while order.finished_at is None and not order.paused and not wait:
        order = await advance(order)
        wait = order.wait_s(now())
        if seconds_since_boot() >= ends:
            break
    counts = {"selected": order.selected, "ended": order.ended}
    rests = order.paused or order.finished_at is not None
    return order, IncidentProgress(
        state=order.state, paused=order.paused, **counts, next_s=None if rests else wait
    )


def reason_of(order: ConnectionsOrder[Any]) -> str:
    """Why a connection is revoked or refreshed."""
    if isinstance(order, BulkOrder):
        return f"bulk order: {order.id}"
    is_leaver = isinstance(order, Incident) and order.kind is IncidentKind.LEAVER
    return f"{'offboarding' if is_leaver else 'incident'}: {order.id}"


def is_new(item: IncidentItem, generation: int) -> bool:
    """Whether the connection has another grant than when it was told."""
    return generation > item.generation


def chunks(ids: list[ConnectionId], size: int) -> list[list[ConnectionId]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]
