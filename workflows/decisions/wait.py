"""The waiting for a person's decision that the store keeps, of an access request or of an agent's call."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.base import RequestContext


class Progress(Protocol):
    """What an activity says of the decision's row: its state, and the seconds to its next moment, if any."""

    @property
    def state(self) -> str: ...
    @property
    def next_s(self) -> float | None: ...


P = TypeVar("P", bound=Progress)


class DecisionWait:
    """Advances the row at each of its moments, and when a signal says that it has changed."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._changed = False

    def note_change(self, context: RequestContext) -> None:
        self._changed, self._context = True, context

    async def advance_until_done(
        self, advance: Callable[[RequestContext], Awaitable[P]], waits_for: str
    ) -> P:
        """What `advance` last returned, once no moment is left. `waits_for` is shown to operators."""
        while True:
            self._changed = False
            progress = await advance(self._context)
            if progress.next_s is None and not self._changed:
                return progress
            workflow.set_current_details(f"it is {progress.state}")
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._changed, timeout=progress.next_s, timeout_summary=waits_for
                )
