"""Time as an argument: what everything outside a workflow asks for the hour."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Says what time it is, always in UTC."""

    def now(self) -> datetime: ...


CLOCK_SKEW = timedelta(minutes=2)  # clocks of different hosts may differ by this much, and nobody minds

LATEST = datetime(9999, 12, 30, tzinfo=UTC)  # a day of room, so that every time zone has it
MAX_LIFETIME = timedelta(days=36_500)  # nothing that is said to last longer is meant


def add_time(at: datetime, by: timedelta | float) -> datetime:
    """`by` after `at` (seconds, if it is a number); LATEST, where there is no such date."""
    try:
        return at + (by if isinstance(by, timedelta) else timedelta(seconds=by))
    except OverflowError:
        return LATEST


def clock_correction(*others: timedelta | None) -> timedelta:
    """What to add to our clock, from how far two other clocks are ahead of it.

    The middle of three counts, so that neither one wrong clock is followed, be it ours, nor a
    provider's that is a day off. With fewer than three there is no telling: zero.
    """
    known = sorted([timedelta(0), *(it for it in others if it is not None)])
    middle = known[1] if len(known) == 3 else timedelta(0)
    return middle if abs(middle) > CLOCK_SKEW else timedelta(0)


def seconds_since_boot() -> float:
    """Seconds since this machine started, the same in each of its processes; no clock jump moves them.

    They also pass while the machine sleeps: another host's clock doesn't stop then.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SetClock:
    """A clock that moves only when told, so that a test can skip a year."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (negative values move back, as clocks do)."""
        self._at += timedelta(seconds=seconds)
