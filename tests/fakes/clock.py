"""A clock for tests, so that a test can skip a year."""

from datetime import datetime, timedelta


class SetClock:
    """Moves only by `advance`."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (negative values move back, as clocks do)."""
        self._at += timedelta(seconds=seconds)
