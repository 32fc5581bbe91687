"""What every step of an incident has in common: its row, its records, and the messages to connections."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentItem,
    IncidentKind,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, OutboxId, derived_id
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.incidents import IncidentCall
from evergrant_server.core.outbox import signal_message
from evergrant_server.store import Store, Transaction

T = TypeVar("T")

_MOST_TOLD = 100  # in one transaction


class Rows:
    """The rows of the incident that a call is about."""

    def __init__(self, store: Store, clock: Clock, call: IncidentCall) -> None:
        self.store, self.clock, self._call = store, clock, call

    @property
    def now(self) -> datetime:
        return self.clock.now()

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await commit_with_retries(self.store, work)

    async def move(
        self, state: Incident, work: Callable[[Transaction, Incident], Awaitable[Incident]]
    ) -> Incident:
        """Do `work` with the row as it is now, and write what it returns, in one transaction. A row that has
        been paused, or is in another state by now, is returned as it is."""

        async def write(tx: Transaction) -> Incident:
            current = await tx.incidents.get(state.tenant, state.id)
            if current is None:
                raise Failure(ErrorCode.NOT_FOUND, f"the row of {state.id} is gone")
            if current.state is not state.state or current.paused:
                return current
            after = await work(tx, current)
            if after == current:
                return current
            return await tx.incidents.replace(after, expected=current.revision)

        return await self.write(write)

    async def held(self, _: Transaction, incident: Incident) -> Incident:
        """The next state once the grace is over; until then the connections can be put back."""
        return incident if incident.wait_s(self.now) else incident.following()

    def context(self, incident: Incident) -> RequestContext:
        """The requester of what is done for it: who ordered the incident."""
        return RequestContext(by=incident.by, trace_id=self._call.context.trace_id)

    async def record(
        self, tx: Transaction, incident: Incident, action: AuditAction, object_id: str, /, **detail: object
    ) -> None:
        entry = AuditEntry(
            tenant=incident.tenant,
            at=self.now,
            action=action,
            object=object_id,
            context=self.context(incident),
            detail=detail,
            provenance=self._call.provenance,
        )
        await audit.append(tx, entry)

    async def tell(
        self, tx: Transaction, incident: Incident, item: IncidentItem, name: str, message: Message
    ) -> None:
        """Signal the connection's workflow, once for the incident, and note that it was told."""
        id = OutboxId(derived_id("out", incident.id, name, item.connection_id))
        signal = signal_message(incident.tenant, item.connection_id, name, message, self.now)
        await tx.outbox.add_once(signal.__replace__(id=id))
        told = item.__replace__(step=ItemStep.TOLD, told_at=self.now)
        await tx.incident_items.replace(told, expected=item.revision)

    async def end(self, tx: Transaction, item: IncidentItem, outcome: ItemOutcome) -> None:
        ended = item.__replace__(step=ItemStep.ENDED, outcome=outcome)
        await tx.incident_items.replace(ended, expected=item.revision)

    def is_over(self, incident: Incident) -> bool:
        """Whether it is reported once each was told, with what is still under way."""
        return self.now >= incident.waits_until


class Waves:
    """How many connections of an integration are told at a time: a provider gets their requests."""

    def __init__(self, rows: Rows, size: int, longest: timedelta) -> None:
        self._rows, self._size, self._longest = rows, size, longest

    async def next(self, tx: Transaction, incident: Incident, step: ItemStep) -> list[IncidentItem]:
        """Connections at this step whose turn it is. One that takes long keeps its place for a while; at the
        end of the incident's time all that are left have theirs."""
        under_way = await tx.incident_items.told_since(incident, self._rows.now - self._longest)
        turns: list[IncidentItem] = []
        over = self._rows.is_over(incident)
        for integration in await tx.incident_items.integrations_at(incident, step):
            room = _MOST_TOLD if over else self._size - under_way.get(integration, 0)
            room = min(room, _MOST_TOLD - len(turns))
            if room > 0:
                turns += await tx.incident_items.next_at(incident, step, room, integration)
        return turns


def reason_of(incident: Incident) -> str:
    """Why a connection is revoked or refreshed."""
    word = "offboarding" if incident.kind is IncidentKind.LEAVER else "incident"
    return f"{word}: {incident.id}"


def is_new(item: IncidentItem, generation: int) -> bool:
    """Whether the connection has another grant than when it was told."""
    return generation > item.generation


def chunks(ids: list[ConnectionId], size: int) -> list[list[ConnectionId]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]
