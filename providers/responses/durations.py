"""Reads durations that providers send as seconds, dates or strings. Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.text import json_type
from providers.responses.raw_reply import UnreadableBody

_DIGITS = re.compile(r"[0-9]{1,15}")
_MAX_SECONDS = MAX_LIFETIME.total_seconds()  # a longer one is a mistake and overflows dates
_MAX_RETRY_S = 86400.0


def parse_duration(value: Any, name: str, *, unit: str = "s", zero_is_never: bool = False) -> float | None:
    """Seconds from a number or a string of digits (RFC 6749 appendix A.14); None for "never" or absent.

    Raises UnreadableBody for other values, and for zero without `zero_is_never`, since a token that is
    expired when issued would be refreshed without end.
    """
    if value is None:
        return None
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableBody(f"{name} that is {json_type(value)}, not digits")
    if isinstance(value, float) and not value.is_integer():
        raise UnreadableBody(f"{name} that is not a whole number")
    if value == 0 and zero_is_never:
        return None
    # compared as an integer: one of a thousand digits has no float
    if not 0 < value <= _MAX_SECONDS * (1000 if unit == "ms" else 1):
        raise UnreadableBody(f"{name} that is out of range")
    return float(value) / (1000 if unit == "ms" else 1)


def seconds_until(value: Any, name: str, format: str, now: datetime | None) -> float | None:
    """Seconds from `now` to a time in ISO 8601 or epoch format; None when absent.

    Raises UnreadableBody for an invalid time, one in the past, or one more than a century away.
    """
    if value is None:
        return None
    if now is None:
        raise UnreadableBody(f"{name} that is a date, in a reply without a Date header")
    try:
        if format == "iso8601":
            time = datetime.fromisoformat(value)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
        elif isinstance(value, bool):
            raise TypeError("a boolean is not a time")
        else:
            time = datetime.fromtimestamp(float(value) / (1000 if format == "epoch_ms" else 1), UTC)
        seconds = (time - now).total_seconds()
    except (ValueError, TypeError, OverflowError, OSError):
        raise UnreadableBody(f"{name} that is not a date") from None
    if not 0 < seconds <= _MAX_SECONDS:
        raise UnreadableBody(f"{name} that is out of range")
    return seconds


def reply_date(headers: dict[str, str]) -> datetime | None:
    """The Date header (RFC 9110 section 6.6.1)."""
    return _http_date(headers.get("date", ""))


def retry_after(headers: dict[str, str], now: datetime | None = None) -> float | None:
    """Retry-After in seconds (RFC 9110 section 10.2.3), from digits or a date; a day at most."""
    text = headers.get("retry-after", "").strip()
    if _DIGITS.fullmatch(text):
        return min(float(text), _MAX_RETRY_S)
    time = _http_date(text)
    now = reply_date(headers) or now
    if time is None or now is None:
        return None
    return min(max((time - now).total_seconds(), 0.0), _MAX_RETRY_S)


def _http_date(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
