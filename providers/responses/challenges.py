"""Parses `WWW-Authenticate`, which a protected resource sends with a 401 or 403 (RFC 9110 section 11). Pure.

A header field may hold several challenges, and a quoted value may hold commas, other parameters' names and
escaped quotes: a search for `scope=` would find what a caller wrote into `error_description`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_MAX_LENGTH = 8192
_MAX_CHALLENGES = 20
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|\Z))")  # section 11.2
_QUOTED = re.compile(r'"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*)"')  # 5.6.4
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_SPACES = re.compile(r"[ \t]+")
_SEPARATORS = re.compile(r"[ \t,]*")  # empty list elements are ignored (section 5.6.1.2)
_ESCAPED = re.compile(r"\\(.)")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749 section 3.3


@dataclass(frozen=True)
class Challenge:
    """One challenge: its scheme and the names of its parameters are in lower case."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes that the resource demands (RFC 6750 section 3); none of a malformed list."""
        text = self.params.get("scope", "")
        return tuple(dict.fromkeys(text.split(" "))) if _SCOPE.fullmatch(text) else ()

    @property
    def resource_metadata(self) -> str | None:
        """The URL of the resource's metadata (RFC 9728 section 5.1)."""
        return self.params.get("resource_metadata")


def bearer_challenge(headers: Iterable[str]) -> Challenge | None:
    """The Bearer challenge of these header fields, or None: also where a field is malformed or has two."""
    found = [it for text in headers for it in parse_challenges(text) if it.scheme == "bearer"]
    return found[0] if len(found) == 1 else None


def challenged_scopes(*headers: str) -> tuple[str, ...]:
    """The scopes of a Bearer challenge with `insufficient_scope` (RFC 6750 section 3.1); none of another."""
    challenge = bearer_challenge(headers)
    if challenge is None or challenge.params.get("error") != "insufficient_scope":
        return ()
    return challenge.scopes


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """The challenges of one header field, in order; none of a field that isn't well-formed."""
    if len(text) > _MAX_LENGTH:
        return ()
    try:
        return tuple(_challenges(text))
    except ValueError:
        return ()


def _challenges(text: str) -> Iterator[Challenge]:
    """Raises ValueError for text that isn't `#challenge` (section 11.6.1)."""
    at, count = _skip(_SEPARATORS, text, 0), 0
    while at < len(text):
        count += 1
        scheme = _TOKEN.match(text, at)
        if scheme is None or count > _MAX_CHALLENGES:
            raise ValueError("no auth-scheme")
        at, params = scheme.end(), dict[str, str]()
        if (spaces := _SPACES.match(text, at)) is not None:
            at = spaces.end()
            if (token68 := _TOKEN68.match(text, at)) is not None:
                at = token68.end()
            else:
                at, params = _params(text, at)
        yield Challenge(scheme.group().lower(), params)
        after = _skip(_SEPARATORS, text, at)
        if after < len(text) and "," not in text[at:after]:
            raise ValueError("no comma between challenges")
        at = after


def _params(text: str, at: int) -> tuple[int, dict[str, str]]:
    """The auth-params from here on, and where they end. No name may come twice (section 11.2)."""
    params: dict[str, str] = {}
    end = at
    while True:
        name = _TOKEN.match(text, at)
        equals = _EQUALS.match(text, name.end()) if name else None
        if name is None or equals is None:
            return end, params  # the name is the next challenge's scheme
        value = _QUOTED.match(text, equals.end()) or _TOKEN.match(text, equals.end())
        key = name.group().lower()
        if value is None or key in params:
            raise ValueError("no value, or a repeated name")
        quoted = value.group().startswith('"')
        params[key] = _ESCAPED.sub(r"\1", value.group(1)) if quoted else value.group()
        end = value.end()
        at = _skip(_SEPARATORS, text, end)
        if at >= len(text) or "," not in text[end:at]:
            return end, params


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
