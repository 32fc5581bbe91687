"""The events that a connection's run has yet to handle: one at a time, the oldest first."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.connection import EventKind, LifecycleEvent

_REVOCATION_FIRST = "a revocation overtakes the inbox"  # a patch's name (CONTRIBUTING.md, "Contracts")


@dataclass(eq=False)
class Ticket:
    """An event in the inbox; `done` once everything that it led to has been carried out."""

    event: LifecycleEvent
    done: bool = False


class Inbox:
    def __init__(self, events: Iterable[LifecycleEvent]) -> None:
        self._tickets = deque(Ticket(event) for event in events)

    def __bool__(self) -> bool:
        return bool(self._tickets)

    @property
    def events(self) -> tuple[LifecycleEvent, ...]:
        return tuple(ticket.event for ticket in self._tickets)

    def put(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)

    def take_oldest(self) -> Ticket:
        return self._tickets.popleft()

    def take(self) -> Ticket:
        """The oldest event; a requested revocation overtakes it."""
        kind = EventKind.REVOCATION_REQUESTED
        urgent = next((ticket for ticket in self._tickets if ticket.event.kind is kind), None)
        if urgent is None or urgent is self._tickets[0] or not workflow.patched(_REVOCATION_FIRST):
            return self._tickets.popleft()
        self._tickets.remove(urgent)
        return urgent

    def is_waited_for(self) -> bool:
        """True when a caller waits for the answer to one of them, or a grant is to be revoked."""
        return any(_is_urgent(ticket.event) for ticket in self._tickets)


def _is_urgent(event: LifecycleEvent) -> bool:
    if event.kind is EventKind.REFRESH_REQUESTED:
        return not event.ahead
    return event.kind in (EventKind.TOKEN_REQUESTED, EventKind.REVOCATION_REQUESTED)
