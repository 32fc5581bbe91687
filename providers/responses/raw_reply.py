"""A provider's reply: as received, its body parsed strictly, the values, dates and durations in it. Pure."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn, Self
from urllib.parse import parse_qsl

import httpx2

from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.text import is_storable_text, json_type


@dataclass(frozen=True)
class RawReply:
    """Status, headers (names in lower case) and body. They may hold tokens, so no repr shows them.

    `request` is None for a reply that was stored: no journal keeps what was sent.
    """

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    request: httpx2.Request | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, response: httpx2.Response) -> Self:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return cls(response.status_code, headers, response.content, response.request)

    def with_body(self, body: bytes) -> Self:
        return self if body == self.body else replace(self, body=body)


_MAX_DEPTH = 32
_MAX_BYTES = 1024 * 1024
MAX_METADATA_LIST = 500
MAX_VALUE_LENGTH = 1024


class UnreadableBody(Exception):
    """A body that isn't as expected. The message describes it without its content."""


def parse_body(body: bytes, form: str = "sniff", prefix: str | None = None) -> dict[str, Any]:
    """A JSON object or a form as a dict. The body decides, since Content-Type is often wrong.

    Raises UnreadableBody for a body that is empty, not UTF-8, neither JSON nor a form, not an object,
    nested too deeply, or has a repeated name (RFC 8259 section 4), NaN or Infinity.
    """
    if len(body) > _MAX_BYTES:
        raise UnreadableBody(f"a body of {len(body)} bytes")
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UnreadableBody(f"a body of {len(body)} bytes that is not UTF-8") from None
    if prefix and text.startswith(prefix):
        text = text.removeprefix(prefix).strip()
        text = text.rstrip("; )") if prefix.endswith("(") else text  # JSONP
    if not text:
        raise UnreadableBody("an empty body")
    if form == "json" or (form == "sniff" and text[0] in '{["'):
        return _parse_json(text)
    return _parse_form(text)


def _parse_json(text: str) -> dict[str, Any]:
    if _depth(text) > _MAX_DEPTH:
        raise UnreadableBody(f"JSON nested deeper than {_MAX_DEPTH}")
    try:
        data = json.loads(text, object_pairs_hook=_unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise UnreadableBody(f"a body of {len(text)} characters that is not JSON") from None
    if not isinstance(data, dict):
        raise UnreadableBody(f"JSON that is {json_type(data)}, not an object")
    return data


def _parse_form(text: str) -> dict[str, Any]:
    if text.startswith("<"):
        raise UnreadableBody(f"markup of {len(text)} characters")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=200)
    except ValueError:
        raise UnreadableBody(f"a body of {len(text)} characters that is neither JSON nor a form") from None
    return _unique_names(pairs)


def _unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise UnreadableBody("a name that is repeated")
        fields[name] = value
    return fields


def _no_constant(name: str) -> NoReturn:
    raise UnreadableBody("a number that is not a number")


def _depth(text: str) -> int:
    """The depth of nesting outside of strings, found without recursion."""
    deepest = level = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            level += 1
            deepest = max(deepest, level)
        elif char in "}]":
            level -= 1
    return deepest


def value_at(data: Any, path: str | None) -> Any:
    """The value at a dotted path, or None."""
    if path is None:
        return None
    for name in path.split("."):
        if isinstance(data, dict):
            data = data.get(name)
        elif isinstance(data, list) and name.isdigit() and int(name) < len(data):
            data = data[int(name)]
        else:
            return None
    return data


def is_metadata_value(value: Any) -> bool:
    """Whether the value is a short scalar, or a short list of them, such as the ids of several accounts."""
    if isinstance(value, list):
        return len(value) <= MAX_METADATA_LIST and all(_is_short_scalar(item) for item in value)
    return _is_short_scalar(value)


def _is_short_scalar(value: Any) -> bool:
    """Whether a column can hold the value, unlike 1e999 or a lone surrogate."""
    match value:
        case str():
            return len(value) <= MAX_VALUE_LENGTH and is_storable_text(value)
        case float():
            return math.isfinite(value)
        case _:
            return isinstance(value, int) and len(str(value)) <= MAX_VALUE_LENGTH


_DIGITS = re.compile(r"[0-9]{1,15}")
_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_MAX_SECONDS = MAX_LIFETIME.total_seconds()  # a longer one is a mistake and overflows dates
_MAX_RETRY_S = 86400.0


def parse_duration(value: Any, name: str, *, unit: str = "s") -> float | None:
    """Seconds from a number or a string of one; None where none is stated, which zero doesn't either.

    RFC 6749 appendix A.14 has digits only; some servers compute a fraction. Taken at its word, zero would
    have a new token refreshed without end. Raises UnreadableBody for other values.
    """
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value) if "." in value else int(value)
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableBody(f"{name} that is {json_type(value)}, not a number")
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


def seconds_until_reset(
    headers: dict[str, str], name: str, format: Literal["seconds", "epoch_s"], now: datetime | None
) -> float | None:
    """When a rate limit ends, by a provider's own header; a day at most."""
    text = headers.get(name.lower(), "").strip()
    if not _DECIMAL.fullmatch(text):
        return None
    seconds = float(text)
    if format == "epoch_s":
        now = reply_date(headers) or now
        if now is None:
            return None
        seconds -= now.timestamp()
    return min(max(seconds, 0.0), _MAX_RETRY_S)


def stated_wait(value: Any, unit: Literal["ms", "s", "min"]) -> float | None:
    """A wait that a body states, in seconds; a day at most, None for what is no number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or not _DECIMAL.fullmatch(str(value))
    ):
        return None
    seconds = float(value) * {"ms": 0.001, "s": 1, "min": 60}[unit]
    return min(seconds, _MAX_RETRY_S)


def _http_date(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
