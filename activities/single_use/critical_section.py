"""Critical sections: tasks that the process owns and an activity merely awaits.

Temporal raises CancelledError inside an activity at start-to-close and at shutdown, also
between a provider's reply and its commit. What may not be cut there runs in a task of its
own: the end of the activity doesn't end it, and shutdown waits for it.
"""

import asyncio
import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from evergrant_server.core.ids import AttemptId
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.journal")

T = TypeVar("T")

CLEANUP_TIMEOUT_S = 5.0  # for a cancelled section to release its journal reservation


class CriticalSections:
    """The critical sections of this process, by attempt."""

    def __init__(self) -> None:
        self._running: dict[AttemptId, asyncio.Task[Any]] = {}

    async def run(self, attempt_id: AttemptId, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancelling this call doesn't cancel it."""
        task = asyncio.create_task(work, name=f"critical section {attempt_id}")
        self._running[attempt_id] = task
        task.add_done_callback(lambda done: self._on_done(attempt_id, done))
        return await asyncio.shield(task)

    def in_flight(self, attempt_id: AttemptId) -> bool:
        return attempt_id in self._running

    async def drain(self, limit: timedelta | None = None) -> None:
        """Wait until every section has ended; called once the worker has stopped polling.

        After `limit` the remaining ones are cancelled: an unavailable store could be waited for
        without end, and the journal holds what it doesn't have yet.
        """
        end = None if limit is None else asyncio.get_running_loop().time() + limit.total_seconds()
        while self._running:
            left = None if end is None else end - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return await self._cancel_remaining()
            await asyncio.wait(list(self._running.values()), timeout=left)

    async def _cancel_remaining(self) -> None:
        remaining = dict(self._running)
        for attempt_id, task in remaining.items():
            why = "shutdown; the next sweep replays it"
            log_event(log, logging.WARNING, LogEvent.JOURNAL_STUCK, why, object=attempt_id)
            task.cancel()
        await asyncio.wait(list(remaining.values()), timeout=CLEANUP_TIMEOUT_S)

    def _on_done(self, attempt_id: AttemptId, task: asyncio.Task[Any]) -> None:
        self._running.pop(attempt_id, None)
        if not task.cancelled():
            task.exception()  # read it here: the activity that awaited the task may be gone
