"""The readings of a request's path, as permits compare them. Pure.

A path is judged as it was sent. `%2F` is a slash to a server that decodes before it splits, and part of a
segment to one that splits first: an allow has to fit both readings, and for a deny one is enough.

A pattern has a path's segments, decoded. The segment `*` stands for any one, and `**` at the end for the path
before it and everything below.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from unicodedata import normalize
from urllib.parse import unquote

_ONE, _REST = "*", "**"
_MOST_SUFFIXES = 3  # that a deny looks behind: a.json.xml.gz
_SUFFIX = re.compile(r"(.+)\.[\w+-]{1,20}\Z", re.DOTALL)
# of the representations of one resource; any other suffix in a pattern is part of a name
_FORMATS = re.compile(r"(.+)\.(?:json|jsonp|jsonld|xml|csv|ya?ml|html?|txt|atom|rss|js|api)\Z", re.DOTALL)
_QUOTED = re.compile(r"[a-z]*(['\"])(.*)\1\Z", re.DOTALL)  # '1', "1" and, of OData 3, guid'1'
_ENDS = re.compile(r"[\s.]+\Z")  # Windows drops them

Segments = tuple[str, ...]
Forms = frozenset[Segments]  # of one segment: each is what some server takes it for


@dataclass(frozen=True)
class PathReadings:
    """A path behind the API's base URL, with its leading slash, percent-encoded as it was sent."""

    path: str

    @cached_property
    def exact(self) -> frozenset[Segments]:
        """The decoded segments, of a server that splits first, and of one that decodes first."""
        parts = [unquote(part) for part in self.path.removeprefix("/").split("/")]
        return frozenset({tuple(parts), tuple("/".join(parts).split("/"))})

    @cached_property
    def lenient(self) -> tuple[tuple[Forms, ...], ...]:
        """Of each reading, what each segment may be to a lenient server."""
        return tuple(tuple(_forms(parts)) for parts in self.exact)

    def fits_allow(self, patterns: Iterable[str]) -> bool:
        """Whether each reading is of one of the patterns, character by character."""
        wanted = [_split(pattern) for pattern in patterns]
        return all(any(_equals(pattern, reading) for pattern in wanted) for reading in self.exact)

    def fits_deny(self, patterns: Iterable[str]) -> bool:
        """Whether a server could take the path for one of the patterns."""
        wanted = [_denied(pattern) for pattern in patterns]
        return any(_reaches(pattern, reading) for pattern in wanted for reading in self.lenient)


@lru_cache(4096)
def _split(pattern: str) -> Segments:
    return tuple(pattern.removeprefix("/").split("/"))


def _equals(pattern: Segments, segments: Segments) -> bool:
    if pattern[-1] == _REST:
        pattern, segments = pattern[:-1], segments[: len(pattern) - 1]
    return len(pattern) == len(segments) and all(
        wanted == part or (wanted == _ONE and part != "")
        for wanted, part in zip(pattern, segments, strict=True)
    )


@lru_cache(4096)
def _denied(pattern: str) -> Segments:
    """The segments of a deny's pattern in the form that the readings of every spelling of it have."""
    parts, wanted = _split(pattern), list[str]()
    for place, part in enumerate(parts, 1):
        if part in (_ONE, _REST):
            wanted.append(part)
            continue
        plain = plain_segment(part)
        if place == len(parts) and (suffixed := _FORMATS.match(plain)):
            plain = plain_segment(suffixed[1])
        wanted += _with_key(plain)[-1]
    return tuple(wanted)


def _forms(parts: Segments) -> Iterable[Forms]:
    """Empty segments are none; the last one may have a suffix that names a format."""
    plain = [plain_segment(part) for part in parts]
    last = max((place for place, part in enumerate(plain) if part), default=-1)
    for place, part in enumerate(plain):
        spellings = [part]
        while (
            place == last and len(spellings) <= _MOST_SUFFIXES and (suffixed := _SUFFIX.match(spellings[-1]))
        ):
            spellings.append(plain_segment(suffixed[1]))
        yield frozenset(form for spelling in spellings for form in _with_key(spelling))


def plain_segment(text: str) -> str:
    """A segment without what servers ignore: case, compatibility forms, parameters (`;v=1`), and dots and
    blanks at its end."""
    folded = normalize("NFKC", normalize("NFKC", text).casefold())
    return _ENDS.sub("", folded.partition(";")[0]).strip()


def _with_key(part: str) -> list[Segments]:
    """The segment as it is and, of OData's `users('1')`, as two: the last one is a pattern's form.

    OData URL conventions, sections 4.3.1 and 4.3.6 (key as segment). The parameters of a function, as in
    `delta(token='x')`, may be left out.
    """
    if not part:
        return [()]
    name, bracket, rest = part.partition("(")
    if not bracket or not name or not rest.endswith(")"):
        return [(part,)]
    key = rest[:-1].strip()
    if not key:
        return [(part,), (name,)]
    parameter, named, value = key.partition("=")
    quoted = _QUOTED.match(parameter)
    if not named or quoted or "," in value:
        forms = [(part,), (name, _unquoted(key))]
        return [forms[0], (name,), forms[1]] if named and not quoted else forms
    return [(part,), (name,), (name, _unquoted(value.strip()))]


def _unquoted(key: str) -> str:
    quoted = _QUOTED.match(key)
    return key if quoted is None else quoted[2].replace("''", "'")


def _reaches(wanted: Segments, reading: tuple[Forms, ...]) -> bool:
    """Whether some choice of forms is the pattern. Follows all choices at once: they are many."""
    below = wanted[-1:] == (_REST,)
    wanted = wanted[:-1] if below else wanted
    places = {0}
    for forms in reading:
        if not places or (below and len(wanted) in places):
            break
        ends = (_after(wanted, place, form, below) for place in places for form in forms)
        places = {end for end in ends if end is not None}
    return len(wanted) in places


def _after(wanted: Segments, place: int, form: Segments, below: bool) -> int | None:
    """Where in the pattern one is behind these segments; None: they aren't what stands there."""
    for part in form:
        if place == len(wanted):
            return place if below else None
        if wanted[place] not in (_ONE, part):
            return None
        place += 1
    return place


def path_pattern_problem(pattern: str) -> str | None:
    """Why a pattern can't be used, or None."""
    if not pattern.startswith("/"):
        return "a path begins with /"
    parts = _split(pattern)
    if any(_ONE in part and part not in (_ONE, _REST) for part in parts) or _REST in parts[:-1]:
        return "* stands for a whole segment, and ** for all that follow, at the end"
    if any(part in (".", "..") for part in parts) or "" in parts[:-1]:
        return "no segment is empty, . or .."
    if any(not char.isprintable() or char in "%?#\\" for char in pattern):
        return "write it decoded, without % ? # and \\"
    return None
