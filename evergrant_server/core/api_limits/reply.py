"""What a reply says of its API's limits: RateLimit, X-RateLimit-*, X-Rate-Limit-* and Retry-After.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit: "default";r=50;t=30`), its revisions before 08
(`RateLimit-Limit`, `limit=100, remaining=50, reset=5`), RFC 9110 section 10.2.3 (Retry-After), and the
vendors that `docs/guide/api-limits.md` lists for the units of a reset. What can't be read says nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RawHeaders = Iterable[tuple[bytes, bytes]]

LONGEST_S = 31 * 86_400.0  # of a window: a month
_LONGEST_PAUSE_S = 86_400.0  # that a Retry-After is believed
_MOST_READ = 1000  # characters of a header
_MOST_LIMITS = 8  # of one reply
_EPOCH_S, _EPOCH_MS = 1e9, 1e11  # numbers above are moments of Unix time, in seconds or milliseconds
_PART = re.compile(
    r"^(?:x-)?([a-z]+-)?rate-?limit-"  # perhaps with the vendor's name
    r"(limit|max|remaining|reset-after|reset|resource|bucket|interval-milliseconds)"
    r"(?:-(second|minute|hour|day|month))?\Z"
)
_WINDOWS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0, "month": LONGEST_S}
_MEMBER = re.compile(
    r'\s*(?:"((?:[^"\\]|\\.)*)"|([A-Za-z0-9*][A-Za-z0-9_.:/*-]*))'  # a string, or a token or number
    r'((?:\s*;[^,;"]*(?:"[^"]*")?)*)\s*'  # its parameters
)
_PARAMETER = re.compile(r';\s*([a-z*][a-z0-9_*-]*)\s*=\s*"?([^;",]*)"?', re.IGNORECASE)
_PAIR = re.compile(r"(limit|remaining|reset)\s*=\s*([0-9.]+)")  # of the revisions 06 and 07
_NUMBER = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,9})?\Z")
_PAUSES_MS = ("retry-after-ms", "x-ms-retry-after-ms")


@dataclass(frozen=True)
class ReplyLimit:
    """One limit as a reply names it. `name` is its policy's, resource's or bucket's; "" for none.

    `calls` in a window of `window_s` seconds; of these `remaining` until the window ends, in `ends_in_s`.
    """

    name: str = ""
    calls: int | None = None
    remaining: int | None = None
    ends_in_s: float | None = None
    window_s: float | None = None

    @property
    def says_when(self) -> bool:
        """Whether nothing is left, and it is known until when."""
        return self.remaining == 0 and self.ends_in_s is not None


@dataclass(frozen=True)
class ReplyLimits:
    """The limits of one reply. `pause_s`: nothing is to be sent for so long."""

    limits: tuple[ReplyLimit, ...] = ()
    pause_s: float | None = None


NOTHING = ReplyLimits()


def read_limits(status: int, headers: RawHeaders, now: datetime) -> ReplyLimits:
    """The limits that a reply with this status names. `now` replaces its Date header.

    Retry-After counts of a 429 alone: a 503 is no limit.
    """
    texts = {
        name.lower().decode("latin-1"): value.decode("latin-1")[:_MOST_READ].strip()
        for name, value in headers
        if b"rate" in (lower := name.lower()) or b"retry" in lower or lower == b"date"
    }
    if not texts.keys() - {"date"}:
        return NOTHING
    served_at = _date(texts.get("date", "")) or now
    limits = (*_standard(texts), *_numbered(texts, served_at))[:_MOST_LIMITS]
    return ReplyLimits(limits, _pause(texts, served_at) if status == 429 else None)


def _standard(texts: dict[str, str]) -> list[ReplyLimit]:
    """The limits of the draft's two fields, by their policies' names; those of requests alone."""
    policies = {name: parameters for name, parameters in _members(texts.get("ratelimit-policy", ""))}
    current = texts.get("ratelimit", "")
    pairs = dict(_PAIR.findall(current))
    if "remaining" in pairs:
        window = next((_number(parameters.get("w")) for parameters in policies.values()), None)
        facts = _whole(pairs.get("limit")), _whole(pairs["remaining"]), _seconds(pairs.get("reset"))
        return [ReplyLimit("", *facts, _bounded(window))]
    limits: list[ReplyLimit] = []
    for name, parameters in _members(current):
        policy = policies.get(name, {})
        remaining = _whole(parameters.get("r"))
        if remaining is None or policy.get("qu", "requests") != "requests":
            continue
        facts = _whole(policy.get("q")), remaining, _seconds(parameters.get("t"))
        limits.append(ReplyLimit(name, *facts, _bounded(_number(policy.get("w")))))
    return limits


def _numbered(texts: dict[str, str], now: datetime) -> list[ReplyLimit]:
    """The limits of headers with one number each, by the window that ends their names (`-Minute`)."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for header, text in texts.items():
        if (match := _PART.match(header)) is not None:
            groups.setdefault((match[1] or "", match[3] or ""), {})[match[2]] = text
    limits: list[ReplyLimit] = []
    for (vendor, window), values in groups.items():
        remaining = _whole(values.get("remaining"))
        if remaining is None:
            continue
        named = groups.get((vendor, ""), {})
        name = named.get("resource") or named.get("bucket") or window
        # "100, 100;w=60": the revisions before 06 name the policies behind the limit
        first, _, policies = (values.get("limit") or values.get("max", "")).partition(",")
        calls = _whole(first.partition(";")[0])
        calls = None if calls is None or calls < remaining else calls
        ends_in = _seconds(values.get("reset-after"))
        if ends_in is None:
            ends_in = _until(values.get("reset", ""), now)
        limits.append(ReplyLimit(name, calls, remaining, ends_in, _width(window, values, policies)))
    return limits


def _width(window: str, values: dict[str, str], policies: str) -> float | None:
    """A window's length: by its name, in milliseconds, or of the first policy."""
    milliseconds = _number(values.get("interval-milliseconds"))
    if milliseconds:
        return _bounded(milliseconds / 1000)
    widths = (_number(parameters.get("w")) for _, parameters in _members(policies))
    return _bounded(_WINDOWS.get(window) or next(widths, None))


def _members(text: str) -> list[tuple[str, dict[str, str]]]:
    """The items of a structured field's list (RFC 9651 section 3.1), with their parameters."""
    members: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(text) and (match := _MEMBER.match(text, at)) is not None:
        parameters = {name.lower(): value.strip() for name, value in _PARAMETER.findall(match[3])}
        members.append((match[1] if match[1] is not None else match[2], parameters))
        at = match.end()
        if text[at : at + 1] != ",":
            break
        at += 1
    return members


def _pause(texts: dict[str, str], now: datetime) -> float | None:
    for header in _PAUSES_MS:
        milliseconds = _number(texts.get(header))
        if milliseconds is not None:
            return min(milliseconds / 1000, _LONGEST_PAUSE_S)
    seconds = _until(texts.get("retry-after", ""), now)
    return None if seconds is None else min(seconds, _LONGEST_PAUSE_S)


def _until(text: str, now: datetime) -> float | None:
    """Seconds until a reset: in seconds, at a Unix time in seconds or milliseconds, or at a date.

    Seconds of more than a month are milliseconds.
    """
    number = _number(text)
    if number is None:
        moment = _date(text)
        return None if moment is None else _bounded(max((moment - now).total_seconds(), 0.0))
    if number >= _EPOCH_S:
        number = (number / 1000 if number >= _EPOCH_MS else number) - now.timestamp()
    elif number > LONGEST_S:
        number /= 1000
    return _bounded(max(number, 0.0))


def _date(text: str) -> datetime | None:
    """A date of HTTP (RFC 9110 section 5.6.7) or of RFC 3339."""
    try:
        moment = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
    except (ValueError, IndexError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.match(text.strip()) else None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _seconds(text: str | None) -> float | None:
    return _bounded(_number(text))


def _bounded(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, LONGEST_S)
