"""Regular expressions in definitions, checked when a definition is read and matched by RE2 (ADR 0014).

Contributors and tenants write the patterns; admins, callbacks and providers write the text. RE2
matches any pattern in time linear in the text.
"""

from functools import lru_cache
from typing import Any

import re2

_MAX_LENGTH = 400
_MAX_PROGRAM_BYTES = 1 << 20


class InvalidPattern(ValueError):
    """Why a pattern is refused. The text is a predicate, such as "must be anchored: ^…$"."""


def check_pattern(pattern: str, *, groups: int = 0, anchored_end: bool = True) -> None:
    """Raise InvalidPattern unless RE2 takes the pattern, it is anchored and has `groups` capturing groups."""
    if len(pattern) > _MAX_LENGTH:
        raise InvalidPattern(f"is longer than {_MAX_LENGTH} characters")
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    if not pattern.startswith("^") or (anchored_end and not ends):
        raise InvalidPattern("must be anchored: ^…$")
    try:
        group_count = _compiled(pattern).groups
    except re2.error:
        raise InvalidPattern(
            "is not a regular expression that RE2 takes, which has no look-around and no back references"
        ) from None
    if group_count != groups:
        raise InvalidPattern(f"must have {groups or 'no'} capturing group{'s' if groups > 1 else ''}")


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches."""
    return _compiled(pattern).fullmatch(_encoded(text)) is not None


def first_group(pattern: str, text: str) -> str | None:
    """The text of the pattern's first capturing group, or None where the pattern doesn't match."""
    match = _compiled(pattern).search(_encoded(text))
    return match.group(1).decode() if match else None


def _encoded(text: str) -> bytes:
    """UTF-8, with a question mark for each lone surrogate that JSON may bring."""
    return text.encode("utf-8", "replace")


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PROGRAM_BYTES
    return re2.compile(_encoded(pattern), options)
