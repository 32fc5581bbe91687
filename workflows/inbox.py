"""What a connection's run receives and sends: its inbox of events, and its replies to `request_token`.

Events are handled one at a time, the oldest first. `token_ready` signals go side by side: the one to a
workflow that is gone takes Temporal's server as long as any other, and sent one after the other, replies to
hundreds of them would hold up the connection's next event.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.connection import EventKind, LifecycleEvent, TokenReady
    from evergrant_server.core.messages.names import SignalName

_MOST_AT_ONCE = 100  # Temporal's own limit for a run is 2,000


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
        if urgent is None:
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


class Replies:
    """The replies of one run that Temporal hasn't confirmed yet."""

    def __init__(self) -> None:
        self._sending: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def send(self, workflow_id: str, message: TokenReady) -> None:
        """Begin to send it. The same reply to the same workflow, if it is still under way, is sent once."""
        key = (workflow_id, message.model_dump_json())
        if key in self._sending:
            return
        await workflow.wait_condition(lambda: len(self._sending) < _MOST_AT_ONCE)
        self._sending[key] = asyncio.create_task(self._send(key, message))

    @property
    def under_way(self) -> bool:
        return bool(self._sending)

    async def finish(self) -> None:
        """Wait until each is delivered, or its workflow is gone."""
        await workflow.wait_condition(lambda: not self._sending)

    async def _send(self, key: tuple[str, str], message: TokenReady) -> None:
        try:
            await workflow.get_external_workflow_handle(key[0]).signal(SignalName.TOKEN_READY, message)
        except FailureError:
            workflow.logger.warning("the workflow that requested a token is gone")
        finally:
            del self._sending[key]
