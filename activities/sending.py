"""The last instant before a credential leaves, and what is known of it afterwards.

Between the check of `send_by` and the write of the bytes a process can be stopped; no client
excludes that. On one host a fence does; across hosts it is measured and counted.
"""

from collections.abc import Callable
from datetime import datetime

from activities.records import record
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import Attempt, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import Call
from evergrant_server.journal import Room
from evergrant_server.store import Store

_TAKEN_OVER = (Outcome.SUPERSEDED, Outcome.INSTALLED_LATE)


class Sending:
    """Lets the bytes of one attempt out, until `send_by`: elapsed seconds, so no clock jump moves it.

    It counts from before the intent, as the row's does for every other worker: a process that is
    stopped while it commits finds out here.
    """

    def __init__(self, room: Room, clock: Clock, send_by: float, look_again_s: float) -> None:
        self._room = room
        self._clock = clock
        self._look_again_s = look_again_s
        self._send_by = send_by
        self.checked_at: datetime | None = None
        self.written_at: datetime | None = None  # None: no byte is known to have left

    def check(self) -> Callable[[], None]:
        """Called just before the bytes are written; what it returns is called once they are.

        Raises Failure REFRESH_PENDING when it is too late, or when another worker of this host
        has taken over: then nothing is sent.
        """
        if not self._room.enter():
            raise self._pending("another worker of this host took over")
        checked = elapsed()
        if checked > self._send_by:
            self._room.leave()
            raise self._pending("too late to send")
        self.checked_at = self._clock.now()

        def written() -> None:
            self.written_at = self._clock.now()
            self._room.leave()
            metrics.send_window(elapsed() - checked)

        return written

    async def tell_if_sent_twice(self, store: Store, attempt: Attempt, order: Call) -> None:
        """Record a use that went on after another worker's intent for the same credential."""
        if self.checked_at is None or elapsed() <= self._send_by:
            return
        try:
            async with store.read() as tx:
                mine = await tx.attempts.get(attempt.tenant, attempt.id)
            if mine is None or mine.outcome not in _TAKEN_OVER or mine.closed_at is None:
                return
            written_at = self.written_at or self._clock.now()
            overlapped = written_at > mine.closed_at  # which is the moment of the other intent
            detail = {
                "attempt": mine.id,
                "from_generation": mine.from_generation,
                "checked_at": self.checked_at.isoformat(),
                "written_at": written_at.isoformat(),
                "taken_over_at": mine.closed_at.isoformat(),
                "overlapped": overlapped,
            }
            async with store.write() as tx:
                await record(tx, order, AuditAction.SENT_TWICE, self._clock.now(), **detail)
        except Failure:
            return  # the store is away: the attempt's row tells of it later
        metrics.sent_twice("overlapped" if overlapped else "one after the other")

    def _pending(self, why: str) -> Failure:
        return Failure(Code.REFRESH_PENDING, why, retry_after=self._look_again_s)
