"""What every source shares: names, expiry and scopes of a row, and why one makes no item."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Protocol, cast

Row = Mapping[str, object]
Item = dict[str, object]

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?\Z")
_FIRST_IN_MILLISECONDS = 1e11  # seconds until the year 5138


class RefusedRow(Exception):
    """A row whose grant can't be imported as it is. Neither text quotes the row."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


class SkippedRow(Exception):
    """A row without a grant, such as a login by password. The reason is counted, not listed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class GrantSource(Protocol):
    """Another system's format. `mapping` says which field of a row becomes which member, for people."""

    mapping: ClassVar[Mapping[str, str]]

    def items(self, row: Row) -> Sequence["Item | SkippedRow | RefusedRow"]:
        """What the row makes, one after the other. Raises RefusedRow, SkippedRow for the row as a whole."""
        ...


@dataclass(frozen=True)
class Names:
    """How the person who imports names integrations and subjects.

    `integrations` maps theirs to ours; `every` is the integration of all rows; `subject` is the path of a
    row's field, such as `tags.end_user_id`.
    """

    integrations: Mapping[str, str]
    every: str | None = None
    subject: str | None = None

    def integration(self, theirs: object) -> str:
        """Raises RefusedRow."""
        if self.every is not None:
            return self.every
        if not isinstance(theirs, str) or not theirs:
            raise RefusedRow("wrong_shape", "it names no integration")
        ours = self.integrations.get(theirs, theirs)
        if not _SLUG.match(ours):
            how = "rename it with --integration THEIRS=OURS"
            raise RefusedRow("integration_unnamed", f"its integration's name can't be one of ours: {how}")
        return ours

    def subject_of(self, row: Row, usual: str) -> str:
        """Raises RefusedRow."""
        path = self.subject or usual
        value = field(row, path)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise RefusedRow("no_subject", f"it has no {path}")
        return str(value)


def field(row: Row, path: str) -> object:
    """The value at a path such as `tags.end_user_id`, or None."""
    if path in row:
        return row[path]
    name, _, rest = path.partition(".")
    inner = row.get(name)
    return field(cast(Row, inner), rest) if rest and isinstance(inner, Mapping) else None


def members(value: object, name: str) -> Row:
    """An object of the row. Raises RefusedRow."""
    if not isinstance(value, Mapping):
        raise RefusedRow("wrong_shape", f"its {name} is no object")
    return cast(Row, value)


def item_of(**members: object) -> Item:
    """An item with the members that have a value."""
    return {name: value for name, value in members.items() if value not in (None, "")}


def expiry(value: object) -> Item:
    """The member for an expiry in ISO 8601, epoch seconds or milliseconds; none is unknown.

    Raises RefusedRow for what is neither: it may be another column's value, and is not quoted.
    """
    if value in (None, ""):
        return {"expires": "unknown"}
    text = str(value).strip()
    try:
        if _NUMBER.match(text):
            number = float(text)
            seconds = number / 1000 if number >= _FIRST_IN_MILLISECONDS else number
            return {"expires_at": datetime.fromtimestamp(seconds, UTC).isoformat()}
        at = datetime.fromisoformat(text.replace(" ", "T", 1))
    except (ValueError, OverflowError, OSError):
        why = "its expiry is neither ISO 8601 nor seconds or milliseconds since 1970"
        raise RefusedRow("bad_expiry", why) from None
    # PostgreSQL's `timestamp` has no zone; UTC is the convention
    return {"expires_at": (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()}


def scopes(value: object) -> list[str] | None:
    """Scopes of a list, or of a text with blanks or commas between them; None when there are none."""
    if isinstance(value, str):
        parts = value.replace(",", " ").split()
    elif isinstance(value, list):
        parts = [str(part) for part in cast(list[object], value)]
    else:
        return None
    return list(dict.fromkeys(parts)) or None
