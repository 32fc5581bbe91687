"""A clock that only the test moves."""

from datetime import UTC, datetime, timedelta
from threading import Lock


class ManualClock:
    """Call it for the time. Pass it as `clock` to the clients too, so that an hour passes for both."""

    def __init__(self, at: datetime | None = None) -> None:
        self._at = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        self._lock = Lock()

    def __call__(self) -> datetime:
        with self._lock:
            return self._at

    def advance(self, by: timedelta) -> None:
        with self._lock:
            self._at += by
