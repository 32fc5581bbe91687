"""How far a stream of the audit log is, who sends it, and when it goes on after a failure. Pure.

A stream loses nothing: a batch that its receiver doesn't take is sent again, later and later, for as long as
the stream is there. After a failure one record is sent alone, then twice as many each time.
"""

from datetime import datetime, timedelta

from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.audit_streams.stream import StreamProblem
from evergrant_server.core.ids import StreamId, TenantRow
from evergrant_server.core.lifecycle.schedule import jitter

MOST_RECORDS = 500  # of a batch
CLAIM_TIME = timedelta(seconds=60)  # longer than a batch takes: afterwards another worker may send it again
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=2), timedelta(minutes=5)
_LONGEST_WAIT_ASKED = timedelta(hours=1).total_seconds()


class StreamState(TenantRow):
    """How far a stream is, and who sends it now.

    `unsent` and `oldest_at` are as of the last batch: how many records wait, and since when the oldest does.
    """

    id: StreamId
    claimed_by: str | None = None
    claimed_until: datetime | None = None
    batch: int = MOST_RECORDS  # records that the next batch has at most
    failures: int = 0  # in a row
    failing_since: datetime | None = None
    paused_until: datetime | None = None
    problem: StreamProblem | None = None
    response_status: int | None = None
    sent: int = 0
    sent_at: datetime | None = None
    unsent: int = 0
    oldest_at: datetime | None = None

    @property
    def is_of_installation(self) -> bool:
        return self.tenant == INSTALLATION

    def may_be_claimed(self, by: str, now: datetime) -> bool:
        if self.paused_until is not None and now < self.paused_until:
            return False
        return self.claimed_by in (None, by) or self.claimed_until is None or self.claimed_until <= now

    def claimed(self, by: str, now: datetime) -> "StreamState":
        return self.__replace__(claimed_by=by, claimed_until=now + CLAIM_TIME)

    def released(self) -> "StreamState":
        return self.__replace__(claimed_by=None, claimed_until=None)

    def restarted(self) -> "StreamState":
        """Without pause and claim: an admin has changed where it goes. Whoever sends it now starts over."""
        return self.released().__replace__(
            failures=0, failing_since=None, paused_until=None, problem=None, response_status=None
        )

    def drained(self) -> "StreamState":
        """Nothing waits."""
        return self.released().waiting(0, None)

    def waiting(self, unsent: int, oldest_at: datetime | None) -> "StreamState":
        return self.__replace__(unsent=unsent, oldest_at=oldest_at)

    def advanced(self, records: int, status: int | None, now: datetime) -> "StreamState":
        """After a batch that was taken."""
        return self.restarted().__replace__(
            claimed_by=self.claimed_by,
            claimed_until=now + CLAIM_TIME,
            batch=min(self.batch * 2, MOST_RECORDS),
            response_status=status,
            sent=self.sent + records,
            sent_at=now,
        )

    def failed(
        self, problem: StreamProblem, status: int | None, retry_after: float | None, now: datetime
    ) -> "StreamState":
        """After a batch that wasn't taken: paused, and released."""
        failures = self.failures + 1
        pause = stream_pause(failures, retry_after, jitter(self.id, failures))
        return self.released().__replace__(
            batch=1,
            failures=failures,
            failing_since=self.failing_since or now,
            paused_until=now + pause,
            problem=problem,
            response_status=status,
        )


def stream_pause(failures: int, retry_after: float | None, share: float) -> timedelta:
    """How long a stream waits after so many failures in a row."""
    wait = min(_FIRST_PAUSE * 2 ** min(failures - 1, 20), _LONGEST_PAUSE) * (0.8 + 0.4 * share)
    if retry_after is not None:
        wait = max(wait, timedelta(seconds=min(retry_after, _LONGEST_WAIT_ASKED)))
    return wait
