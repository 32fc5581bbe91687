"""The last instant before a credential leaves, and what is known of it afterwards.

Between the check of `send_by` and the write of the bytes a process can be stopped; no client
excludes that. On one host a fence does; across hosts it is measured and counted.
"""

from collections.abc import Callable
from datetime import datetime

from activities.support.transactions import append_audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import ConnectionCall
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.journal import JournalReservation
from evergrant_server.store import Store
from evergrant_server.telemetry import metrics

_TAKEN_OVER_OUTCOMES = (AttemptOutcome.SUPERSEDED, AttemptOutcome.INSTALLED_LATE)


class SendFence:
    """Lets the bytes of one attempt out, until `send_by`: elapsed seconds, so no clock jump moves it.

    It counts from before the intent, as the row's does for every other worker: a process that is
    stopped while it commits finds out here.
    """

    def __init__(self, room: JournalReservation, clock: Clock, send_by: float, look_again_s: float) -> None:
        self._room = room
        self._clock = clock
        self._retry_after_s = look_again_s
        self._deadline = send_by
        self.checked_at: datetime | None = None
        self.written_at: datetime | None = None  # None: no byte is known to have left

    def check(self) -> Callable[[], None]:
        """Called just before the bytes are written; what it returns is called once they are.

        Raises Failure REFRESH_PENDING when it is too late, or when another worker of this host
        has taken over: then nothing is sent.
        """
        if not self._room.begin_send():
            raise self._pending("another worker of this host took over")
        checked = seconds_since_boot()
        if checked > self._deadline:
            self._room.end_send()
            raise self._pending("too late to send")
        self.checked_at = self._clock.now()

        def written() -> None:
            self.written_at = self._clock.now()
            self._room.end_send()
            metrics.record_send_window(seconds_since_boot() - checked)

        return written

    async def record_double_send(self, store: Store, attempt: Attempt, order: ConnectionCall) -> None:
        """Record a use that went on after another worker's intent for the same credential."""
        if self.checked_at is None or seconds_since_boot() <= self._deadline:
            return
        try:
            async with store.read() as tx:
                mine = await tx.attempts.get(attempt.tenant, attempt.id)
            if mine is None or mine.outcome not in _TAKEN_OVER_OUTCOMES or mine.closed_at is None:
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
                await append_audit(tx, order, AuditAction.SENT_TWICE, self._clock.now(), **detail)
        except Failure:
            return  # the store is away: the attempt's row tells of it later
        metrics.count_double_send("overlapped" if overlapped else "one after the other")

    def _pending(self, why: str) -> Failure:
        return Failure(ErrorCode.REFRESH_PENDING, why, retry_after=self._retry_after_s)
