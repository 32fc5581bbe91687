"""The small language of patterns in definitions, and why one may not be used. Pure.

A definition is written by others and its patterns meet what an admin, a callback or a
provider typed. So only what can be reasoned about may stand there: characters, classes,
groups, alternatives and counts. No dot, no look-around, no back reference; and nothing whose
matching grows out of hand: a repeat inside a repeat needs a separator that the inner one
can't match, and few repeats of unlimited length may stand in a row.
"""

from dataclasses import dataclass
from string import ascii_letters, digits

_LONGEST = 400
_MOST_LOOSE = 3  # repeats in a row that can each take many lengths: work grows with this power
_LOOSE = 16
_MOST = 10_000  # "unlimited", as a number
_PLAIN = frozenset(ascii_letters + digits + "-_:/ ,;=@!%&~'\"<>#")
_ESCAPED = frozenset(".^$*+?()[]{}|\\-/")


class BadPattern(ValueError):
    """Why a pattern may not be used. The text is a predicate: "has a dot"."""


@dataclass(frozen=True)
class One:
    """One character out of a set."""

    chars: frozenset[str]


@dataclass(frozen=True)
class Repeat:
    """`item`, between `least` and `most` times."""

    item: "Node"
    least: int
    most: int

    @property
    def varies(self) -> bool:
        return self.least != self.most


@dataclass(frozen=True)
class Row:
    items: tuple["Node", ...]


@dataclass(frozen=True)
class Either:
    branches: tuple["Node", ...]


Node = One | Repeat | Row | Either


def check_pattern(pattern: str, *, groups: int = 0, anchored_end: bool = True) -> None:
    """Raise BadPattern unless this is an anchored pattern of the small language.

    `groups` is how many capturing groups it must have.
    """
    if len(pattern) > _LONGEST:
        raise BadPattern(f"is longer than {_LONGEST} characters")
    if not pattern.startswith("^") or (anchored_end and not _ends(pattern)):
        raise BadPattern("must be anchored: ^…$")
    inner = pattern[1:-1] if _ends(pattern) else pattern[1:]
    reader = _Reader(inner)
    node = reader.either()
    if reader.groups != groups:
        raise BadPattern(f"must have {groups or 'no'} capturing group{'s' if groups > 1 else ''}")
    if _loose(node) > _MOST_LOOSE:
        raise BadPattern("has too many repeats of many lengths in a row")


def _ends(pattern: str) -> bool:
    return pattern.endswith("$") and not pattern.endswith("\\$")


def _chars(node: Node) -> frozenset[str]:
    """Every character a match may hold."""
    match node:
        case One(chars):
            return chars
        case Repeat(item, _, most):
            return _chars(item) if most else frozenset()
        case Row(items) | Either(items):
            return frozenset().union(*map(_chars, items))


def _choosy(node: Node) -> bool:
    """Whether one text may be matched in several ways, or a match may have several lengths."""
    match node:
        case One():
            return False
        case Repeat(item):
            return node.varies or _choosy(item)
        case Row(items):
            return any(map(_choosy, items))
        case Either():
            return True


def _separated(body: Node) -> bool:
    """Whether a body begins or ends with a character that nothing else in it can match."""
    if not isinstance(body, Row):
        return False
    for at, rest in ((0, body.items[1:]), (-1, body.items[:-1])):
        edge = body.items[at]
        if isinstance(edge, One) and edge.chars.isdisjoint(_chars(Row(rest))):
            return True
    return False


def _loose(node: Node) -> int:
    """How many repeats of many lengths stand in a row, in the worst path."""
    match node:
        case One():
            return 0
        case Repeat(item, least, most):
            if most > 1 and _choosy(item) and not _separated(item):
                raise BadPattern("repeats what itself varies, without a separator: it may never end")
            return _loose(item) + (most - least > _LOOSE)
        case Row(items):
            return sum(map(_loose, items))
        case Either(branches):
            return max(map(_loose, branches))


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self.groups = 0

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._next()
        if not char:
            raise BadPattern("is not a regular expression: it ends too early")
        self._at += 1
        return char

    def either(self) -> Node:
        self._depth += 1
        if self._depth > 8:
            raise BadPattern("is nested too deeply")
        branches = [self._row()]
        while self._next() == "|":
            self._take()
            branches.append(self._row())
        self._depth -= 1
        if self._depth == 0 and self._next():
            raise BadPattern("is not a regular expression: a closing bracket too many")
        if self._depth == 0 and len(branches) > 1:
            raise BadPattern("has an alternative that the anchors don't cover: ^(?:a|b)$")
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def _row(self) -> Node:
        items: list[Node] = []
        while self._next() not in ("", "|", ")"):
            items.append(self._counted(self._item()))
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _item(self) -> Node:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return One(self._class())
        return One(frozenset({self._plain(char)}))

    def _plain(self, char: str) -> str:
        if char == "\\":
            escaped = self._take()
            if escaped not in _ESCAPED:
                raise BadPattern(f"has \\{escaped}: write the characters out")
            return escaped
        if char == ".":
            raise BadPattern("has a dot that matches anything: write the characters out, or \\.")
        if char not in _PLAIN:
            raise BadPattern(f"is not a regular expression of plain parts: {char!r} can't stand there")
        return char

    def _group(self) -> Node:
        if self._next() == "?":
            self._take()
            if self._take() != ":":
                raise BadPattern("looks around or has flags; only (?:…) and (…) are known")
        else:
            self.groups += 1
        inner = self.either()
        if self._take() != ")":
            raise BadPattern("is not a regular expression: a group isn't closed")
        return inner

    def _class(self) -> frozenset[str]:
        chars: set[str] = set()
        if self._next() == "^":
            raise BadPattern("has a class of what may not be there: write what may")
        while (char := self._take()) != "]":
            first = self._plain(char) if char == "\\" else char
            if self._next() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._take()
                last = self._take()
                if not first <= last or last == "\\":
                    raise BadPattern("is not a regular expression: a range that runs backwards")
                chars.update(map(chr, range(ord(first), ord(last) + 1)))
            else:
                chars.add(first)
        if not chars:
            raise BadPattern("is not a regular expression: an empty class")
        return frozenset(chars)

    def _counted(self, item: Node) -> Node:
        counts = {"?": (0, 1), "*": (0, _MOST), "+": (1, _MOST)}
        char = self._next()
        if char in counts and char:
            self._take()
            least, most = counts[char]
        elif char == "{":
            least, most = self._braces()
        else:
            return item
        if not _chars(item):
            raise BadPattern("repeats nothing")
        if self._next() in ("?", "+", "*", "{") and self._next():
            raise BadPattern("counts twice in a row")
        return Repeat(item, least, most)

    def _braces(self) -> tuple[int, int]:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not low.isdecimal() or (high and not high.isdecimal()):
            raise BadPattern("is not a regular expression: a count must be {n}, {n,} or {n,m}")
        self._at = end + 1
        most = int(high) if high else (_MOST if comma else int(low))
        if not int(low) <= most <= _MOST or most == 0:
            raise BadPattern("has a count that is out of order")
        return int(low), most
