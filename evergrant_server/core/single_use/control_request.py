"""The control request: a refresh token that can't exist, and whether its answer equals a refused one's. Pure.

docs/protocol.md says when one is sent, and what its answer proves.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from string import ascii_lowercase, ascii_uppercase, digits

from evergrant_server.core.single_use.recurring_errors import UndecidedRefusals

_RANDOM_BITS = 128
_PREFIX = re.compile(r"(?:[A-Za-z]{1,8}[_-]){1,3}(?=.{16})")  # such as ghr_, which says what a token is
_HEX = "0123456789abcdef"
# What differs between two answers to the same request: ids, dates, times, counters.
_VARIES = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"  # UUID
    r"|\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? \d\d? [a-z]{3} \d{4}"
    r"|\d\d:\d\d:\d\d(?:\.\d+)?"
    r"|(?=[\w+/=.~-]*\d)[\w+/=.~-]{16,}"  # a name of an error that has a digit is shorter
    r"|(?<!\w)\d{9,}(?!\w)",  # such as seconds since 1970
    re.IGNORECASE,
)


def made_up_token(token: str, choice: Callable[[Sequence[str]], str] = secrets.choice) -> str:
    """A token of the same prefix, length and alphabet that no server has issued: 128 bits are random."""
    match = _PREFIX.match(token)
    prefix = match.group() if match else ""
    body = token[len(prefix) :]
    alphabet = _alphabet_of(body)
    made = "".join(choice(_class_of(char, alphabet)) for char in body)
    bits = sum(len(_class_of(char, alphabet)).bit_length() - 1 for char in body)
    while bits < _RANDOM_BITS:
        made += choice(alphabet)
        bits += len(alphabet).bit_length() - 1
    return prefix + made


def _alphabet_of(body: str) -> str:
    """The characters that a token is made of: digits, hexadecimal ones, or letters of its case too."""
    used = {char for char in body if char.isascii() and char.isalnum()}
    lower = {char.lower() for char in used}
    if used and used <= set(digits):
        return digits
    letters = "abcdef" if used and lower <= set(_HEX) else ascii_lowercase
    has_lower, has_upper = used & set(ascii_lowercase), used & set(ascii_uppercase)
    return digits + (letters if has_lower or not has_upper else "") + (letters.upper() if has_upper else "")


def _class_of(char: str, alphabet: str) -> str:
    """The characters that may stand where this one does; separators stay."""
    return alphabet if char.isascii() and char.isalnum() else char


def comparable_answer(status: int, media_type: str, body: bytes, sent: Sequence[str]) -> str:
    """What two refusals are compared by: a digest of status, media type and body, without what was `sent`
    (a token, echoed) and what varies from answer to answer."""
    text = " ".join(body.decode("utf-8-sig", "replace").split())
    for value in sent:
        text = text.replace(value, "*")
    text = _VARIES.sub("*", text)
    parts = (str(status), media_type.partition(";")[0].strip().lower(), text)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


# One request tells much, and a provider that limits refused ones may not be asked often.
ANSWER_KEPT_FOR = timedelta(days=3)
FOR_INTEGRATION_EVERY = timedelta(days=1)
FOR_HOST_EVERY = timedelta(hours=1)


class ControlOutcome(StrEnum):
    """What a control request was answered with."""

    REFUSED = "refused"
    GRANTED = "granted"  # the server makes tokens of anything: it is never asked again
    UNANSWERED = "unanswered"  # or with a 5xx, a limit or a page: it proves nothing


class ControlStep(StrEnum):
    """What is done about a refusal that doesn't say whose turn it is."""

    NOTHING = "nothing"
    COMPARE = "compare"  # with the answer that is kept
    SEND = "send"


@dataclass(frozen=True)
class ControlFacts:
    """What the store knows about a refusal that came, or is about to come, for the third time."""

    refusals: UndecidedRefusals
    worked_at: datetime | None  # the newest refresh of another connection of the same client
    unequal_at: datetime | None = None  # when this connection's answer was compared last, and differed
    kept: str | None = None  # the answer to the newest control request
    kept_at: datetime | None = None
    makes_tokens_of_anything: bool = False
    requested_at: datetime | None = None  # of the integration
    host_requested_at: datetime | None = None  # of any integration at this host
    client_changed_at: datetime | None = None

    def step(self, now: datetime) -> ControlStep:
        refusals = self.refusals
        before = refusals.answered_before
        witness = before is not None and self.worked_at is not None and self.worked_at > before
        differs = self.unequal_at is not None and self.unequal_at >= refusals.answered_since
        if not refusals.came_twice_before or not witness or differs or self.makes_tokens_of_anything:
            return ControlStep.NOTHING
        if self._is_kept(now):
            return ControlStep.COMPARE
        limits = ((self.requested_at, FOR_INTEGRATION_EVERY), (self.host_requested_at, FOR_HOST_EVERY))
        free = all(at is None or now - at >= every for at, every in limits)
        return ControlStep.SEND if free else ControlStep.NOTHING

    def _is_kept(self, now: datetime) -> bool:
        if self.kept is None or self.kept_at is None or now - self.kept_at > ANSWER_KEPT_FOR:
            return False
        return self.client_changed_at is None or self.kept_at > self.client_changed_at
