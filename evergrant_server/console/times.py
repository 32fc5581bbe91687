"""Moments, times and counts in words, for pages."""

from datetime import UTC, datetime

Counted = tuple[int, str, str]  # a number, and what one and several are

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(at: datetime, now: datetime) -> str:
    """How far a moment is from now, in one unit: `5 min ago`, `in 2 h`."""
    seconds = (now - at).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def counted(number: float, one: str, many: str | None = None) -> str:
    """A number with what is counted: `1 connection`, `1,200 connections`, `2 wait`."""
    shown = f"{number:,.0f}" if number == int(number) else f"{number:,}"
    return f"{shown} {one if number == 1 else many or f'{one}s'}"


def span(seconds: float) -> str:
    """A time in one unit, rounded down."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h"
    return f"{seconds // _DAY:.0f} d"
