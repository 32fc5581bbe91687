"""A list or an object as a table for people, JSON or YAML.

On a terminal a table fits its width, times are relative too, and states are coloured unless NO_COLOR is
set. In a file or a pipe nothing is folded, left out or relative.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import yaml
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, object]
Shown = Any  # a row, or a model of the API

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_GAP = 2
_STYLES = {
    **dict.fromkeys(("active", "ready", "approved", "allow", "True", "delivered", "ok"), "green"),
    **dict.fromkeys(("needs_reauth", "failed", "broken", "refused", "problem", "deny"), "red"),
    **dict.fromkeys(("pending_consent", "discovering", "revoking", "waiting", "warning"), "yellow"),
    **dict.fromkeys(("revoked", "consent_expired", "denied", "expired", "ended", "False"), "dim"),
}
_STATES = frozenset({"state", "level", "live", "effect", "status"})


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def show_rows(
    shown: Iterable[Shown],
    columns: tuple[str, ...],
    output: Format,
    *,
    below: Mapping[str, tuple[str, ...]] | None = None,
    usual: Row | None = None,
) -> None:
    """A list: a table of `columns`, or an array with every member.

    On a terminal the members `below` a column are further lines of its cells, and columns without a value,
    or with the `usual` one alone, are left out.
    """
    rows = [_row(each) for each in shown]
    if output is not Format.TABLE:
        _print_value(rows, output)
        return
    console = _console()
    if not console.is_terminal:
        console.print(_table(columns, ([_cell(row.get(name)) for name in columns] for row in rows)))
        return
    if not rows:
        console.print("none")
        return
    _print_fitting(rows, columns, below or {}, usual or {}, console)


def show_one(shown: Shown, output: Format) -> None:
    """One object: a line for each member, or an object."""
    row = _row(shown)
    if output is Format.TABLE:
        _print_members(row, _console())
    else:
        _print_value(row, output)


def printable(text: str) -> str:
    """Without control characters: a server's text must not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def relative(at: datetime, now: datetime) -> str:
    """`in 58m`, `3d ago` or `now`: the largest unit alone."""
    seconds = round((at - now).total_seconds())
    if seconds == 0:  # also a time of a clock that is ahead of ours by less
        return "now"
    size, unit = next((unit for unit in _UNITS if abs(seconds) >= unit[0]), _UNITS[-1])
    count = f"{abs(seconds) // size}{unit}"
    return f"in {count}" if seconds > 0 else f"{count} ago"


def _print_fitting(
    rows: Sequence[Row],
    columns: tuple[str, ...],
    below: Mapping[str, tuple[str, ...]],
    usual: Row,
    console: Console,
) -> None:
    """A table for a terminal; where the terminal is too narrow, one member a line."""
    stacked = {name for names in below.values() for name in names}
    filled = [_filled(row, columns, usual) for row in rows]
    visible = tuple(name for name in columns if name not in stacked and any(name in has for has in filled))
    cells = [
        [
            "\n".join(
                _seen(row.get(member))
                for member in (name, *(low for low in below.get(name, ()) if low in has))
            )
            for name in visible
        ]
        for row, has in zip(rows, filled, strict=True)
    ]
    plain = [name.removesuffix("_at") for name in visible]
    for headers in (plain, [name.replace("_", "\n") for name in plain]):
        if _width(headers, cells) <= console.width:
            console.print(_table(headers, cells))
            return
    for row, has in zip(rows, filled, strict=True):
        _print_members({name: row[name] for name in has}, console)
        console.print()


def _print_value(value: object, output: Format) -> None:
    if output is Format.JSON:
        print(json.dumps(value, indent=2))
    else:
        print(yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True), end="")


def _plain(value: object) -> object:
    """Dictionaries and lists alone, which is what YAML's safe form knows."""
    match value:
        case Mapping():
            return {
                str(name): _plain(member) for name, member in cast(Mapping[object, object], value).items()
            }
        case list() | tuple():
            return [_plain(item) for item in cast(Sequence[object], value)]
        case _:
            return value


def _print_members(row: Row, console: Console) -> None:
    width = max((len(name) for name in row), default=0)
    for name, value in row.items():
        text = _cell(value)
        if console.is_terminal and (at := _time(value)) is not None:
            text = f"{text} ({relative(at, datetime.now(UTC))})"
        line = Text()
        line.append(f"{name:<{width}}  ", "bold" if console.is_terminal else "")
        line.append(text, _style(name, text))
        console.print(line, soft_wrap=True)


def _console() -> Console:
    width = None if sys.stdout.isatty() else 10_000
    return Console(highlight=False, markup=False, width=width)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, _style(name, cell)) for name, cell in zip(columns, row, strict=True)))
    return table


def _width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    widest = (max(cell_len(line) for row in (columns, *cells) for line in row[n].split("\n"))
              for n in range(len(columns)))  # fmt: skip
    return sum(widest) + _GAP * (len(columns) - 1)


def _filled(row: Row, names: Iterable[str], usual: Row) -> list[str]:
    return [name for name in names if row.get(name) not in (None, "", (), [], usual.get(name))]


def _seen(value: object) -> str:
    """A cell on a terminal."""
    at = _time(value)
    return _cell(value) if at is None else relative(at, datetime.now(UTC))


def _time(value: object) -> datetime | None:
    if not isinstance(value, str) or not _TIME.match(value):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at if at.tzinfo else None


def _style(column: str, cell: str) -> str:
    return _STYLES.get(cell.partition("\n")[0], "") if column in _STATES else ""


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case list() | tuple():
            return printable(" ".join(str(part) for part in cast(list[object], value))) or "-"
        case dict():
            return printable(json.dumps(value))
        case _:
            return printable(str(value))


def _row(shown: Shown) -> Row:
    """A model's members, or the row itself."""
    return row_of(shown) if is_dataclass(shown) else shown


def row_of(model: Any) -> dict[str, object]:
    """Every field of a model as JSON values, but for a secret that this answer doesn't have."""
    shown = (field for field in fields(model) if field.repr or getattr(model, field.name) is not None)
    return members_of(model, tuple(field.name for field in shown))


def members_of(source: object, names: tuple[str, ...]) -> dict[str, object]:
    return {name: _json_value(getattr(source, name)) for name in names}


def _json_value(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case StrEnum():
            return value.value
        case tuple():
            return [_json_value(item) for item in cast(tuple[object, ...], value)]
        case Mapping():
            return dict(cast(Mapping[str, object], value))
        case _:
            return row_of(value) if is_dataclass(value) else value
