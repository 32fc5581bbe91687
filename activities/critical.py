"""Critical sections: work that the process owns and an activity merely awaits.

Temporal raises CancelledError inside an activity at start-to-close and at shutdown, also
between a provider's answer and its commit. What may not be cut there runs in a task of its
own; the activity's end doesn't end it, and shutdown waits for it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from evergrant_server.core.ids import AttemptId

T = TypeVar("T")


class CriticalSections:
    """The sections under way in this process, by attempt."""

    def __init__(self) -> None:
        self._running: dict[AttemptId, asyncio.Task[Any]] = {}

    async def run(self, attempt_id: AttemptId, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` without being able to cut it."""
        task = asyncio.create_task(work, name=f"critical section {attempt_id}")
        self._running[attempt_id] = task
        task.add_done_callback(lambda done: self._ended(attempt_id, done))
        return await asyncio.shield(task)

    def in_flight(self, attempt_id: AttemptId) -> bool:
        return attempt_id in self._running

    async def drain(self) -> None:
        """Wait until every section has ended; called after the worker has stopped polling."""
        while self._running:
            await asyncio.wait(list(self._running.values()))

    def _ended(self, attempt_id: AttemptId, task: asyncio.Task[Any]) -> None:
        self._running.pop(attempt_id, None)
        if not task.cancelled():
            task.exception()  # the activity that awaited it may be gone
