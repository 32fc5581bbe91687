"""The clock interface, the system's clock, and date arithmetic. Workflows use Temporal's clock instead."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """The time of day, in UTC."""

    def now(self) -> datetime: ...


CLOCK_SKEW = timedelta(minutes=2)  # the clocks of two hosts may differ by this much

LATEST = datetime(9999, 12, 30, tzinfo=UTC)  # a day of room, so that every time zone has it
MAX_LIFETIME = timedelta(days=36_500)  # a longer lifetime is taken for a mistake


def add_time(at: datetime, by: timedelta | float) -> datetime:
    """`by` after `at` (seconds, if it is a number); LATEST, where there is no such date."""
    try:
        return at + (by if isinstance(by, timedelta) else timedelta(seconds=by))
    except OverflowError:
        return LATEST


def clock_correction(*others: timedelta | None) -> timedelta:
    """What to add to our clock, from how far two other clocks are ahead of it.

    The median of three, so that one wrong clock is never followed, whichever it is. Zero when
    fewer than three are known.
    """
    known = sorted([timedelta(0), *(length for length in others if length is not None)])
    middle = known[1] if len(known) == 3 else timedelta(0)
    return middle if abs(middle) > CLOCK_SKEW else timedelta(0)


def clocks_apart(moment: float, now: datetime) -> str:
    """How far a moment of another clock is from ours, for a refusal: it may be a clock that is wrong."""
    ours = now.timestamp()
    if not ours - 1e9 < moment < ours + 1e9:  # no clock is that wrong, and some numbers are no time
        return "not a time near this server's"
    seconds = moment - ours
    return (
        f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this server's clock, which shows "
        f"{now:%Y-%m-%dT%H:%M:%SZ}: compare it with the clock of the host that made the token (NTP)"
    )


def seconds_since_boot() -> float:
    """Seconds since this machine started, the same in each of its processes; no clock jump moves them.

    They also pass while the machine sleeps: another host's clock doesn't stop then.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)
