"""What a reply says is left of a rate limit: nothing, until its reset. Pure.

By `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), by the header pairs of
its earlier versions, and by `X-RateLimit-Remaining` and `-Reset` in their spellings. What can't be
read says nothing.
"""

import re
from datetime import datetime

from providers.definition.schema_errors import RateLimitReset
from providers.responses.raw_reply import reply_date

_LONGEST_S = 86400.0  # a limit whose reset is farther away is not believed
_LONGEST_HEADER = 1024
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_QUOTED = re.compile(r'"[^"]*"')
_PREFIXES = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")


def nothing_left_for(headers: dict[str, str], reset: RateLimitReset | None, now: datetime) -> float | None:
    """Seconds until a limit is reset of which nothing is left; None when the reply names none."""
    waits = [*_of_structured_fields(headers), *_of_pairs(headers, reset, now)]
    return max((it for it in waits if it is not None and 0 < it <= _LONGEST_S), default=None)


def _of_structured_fields(headers: dict[str, str]) -> list[float | None]:
    """`"daily";r=0;t=30`, and `limit=9, remaining=0, reset=30` of an earlier version."""
    limits, policies = _members(headers, "ratelimit"), _members(headers, "ratelimit-policy")
    waits: list[float | None] = []
    for name, member in limits.items():
        if _number(member.get("r")) == 0:
            waits.append(_number(member.get("t") or policies.get(name, {}).get("w")))
    if _number(limits.get("remaining", {}).get("")) == 0:
        waits.append(_number(limits.get("reset", {}).get("")))
    return waits


def _members(headers: dict[str, str], header: str) -> dict[str, dict[str, str]]:
    """The members of a list by name, each with its parameters (RFC 9651 section 3.1.2)."""
    text = _read(headers, header)
    if text.count('"') % 2:
        return {}
    names = iter(_QUOTED.findall(text))
    members: dict[str, dict[str, str]] = {}
    for member in _QUOTED.sub('"', text).split(","):
        item, *parameters = (it.strip() for it in member.split(";"))
        item = next(names, item) if item.startswith('"') else item
        name, _, value = item.partition("=")
        pairs = (it.partition("=") for it in parameters)
        members[name.strip()] = {"": value.strip()} | {key: given for key, _, given in pairs}
    return members


def _of_pairs(headers: dict[str, str], reset: RateLimitReset | None, now: datetime) -> list[float | None]:
    """A header that counts what is left, beside the one that says when it is reset."""
    own = reset.header.lower() if reset is not None else ""
    names = {f"{prefix}reset" for prefix in _PREFIXES} | ({own} if own.endswith("reset") else set[str]())
    left = {name: _read(headers, f"{name.removesuffix('reset')}remaining") for name in names}
    return [
        _seconds(headers, name, reset.format if reset is not None and name == own else None, now)
        for name, remaining in left.items()
        if _number(remaining) == 0
    ]


def _seconds(headers: dict[str, str], name: str, format: str | None, now: datetime) -> float | None:
    """Until a reset that is given in seconds or as a Unix time: `format`, or the only one that it can be."""
    value = _number(_read(headers, name))
    if value is None or format == "seconds" or (format is None and value <= _LONGEST_S):
        return value
    return value - (reply_date(headers) or now).timestamp()


def _read(headers: dict[str, str], name: str) -> str:
    text = headers.get(name, "").strip()
    return text if len(text) <= _LONGEST_HEADER else ""


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text) else None
