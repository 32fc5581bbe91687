"""Critical sections: work that the process owns and an activity merely awaits.

Temporal raises CancelledError inside an activity at start-to-close and at shutdown, also
between a provider's answer and its commit. What may not be cut there runs in a task of its
own; the activity's end doesn't end it, and shutdown waits for it.
"""

import asyncio
import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from evergrant_server.core.ids import AttemptId
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event

log = logging.getLogger("evergrant.journal")

T = TypeVar("T")

CLEANUP_TIMEOUT_S = 5.0  # for giving a room back


class CriticalSections:
    """The sections under way in this process, by attempt."""

    def __init__(self) -> None:
        self._running: dict[AttemptId, asyncio.Task[Any]] = {}

    async def run(self, attempt_id: AttemptId, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` without being able to cut it."""
        task = asyncio.create_task(work, name=f"critical section {attempt_id}")
        self._running[attempt_id] = task
        task.add_done_callback(lambda done: self._on_done(attempt_id, done))
        return await asyncio.shield(task)

    def in_flight(self, attempt_id: AttemptId) -> bool:
        return attempt_id in self._running

    async def drain(self, limit: timedelta | None = None) -> None:
        """Wait until every section has ended; called after the worker has stopped polling.

        After `limit` the others are cut. It is for when every answer has come: a store that is away
        can be waited for without an end, and what it hasn't got is in the journal.
        """
        end = None if limit is None else asyncio.get_running_loop().time() + limit.total_seconds()
        while self._running:
            left = None if end is None else end - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return await self._cancel_remaining()
            await asyncio.wait(list(self._running.values()), timeout=left)

    async def _cancel_remaining(self) -> None:
        cut = dict(self._running)
        for attempt, task in cut.items():
            log_event(
                log,
                logging.WARNING,
                LogEvent.JOURNAL_STUCK,
                "shutdown; the next sweep replays it",
                object=attempt,
            )
            task.cancel()
        await asyncio.wait(list(cut.values()), timeout=CLEANUP_TIMEOUT_S)

    def _on_done(self, attempt_id: AttemptId, task: asyncio.Task[Any]) -> None:
        self._running.pop(attempt_id, None)
        if not task.cancelled():
            task.exception()  # the activity that awaited it may be gone
