"""What every command shares: its options, arguments that are read in a special way, and what it prints.

A table for people, JSON for programs, one line for an error.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter, Token
from rich.console import Console
from rich.table import Table

from evergrant.errors import BadRequest, EvergrantError
from evergrant.identity.session_file import token_for
from evergrant.lease import Lease
from evergrant.models import Connection, ProviderSaid
from evergrant.origins import read_key_file
from evergrant.sync_client import Evergrant

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = Mapping[str, object]

_CONNECTION = (
    *("id", "integration", "provider", "subject", "label", "flow", "state", "generation", "scopes"),
    *("expires_at", "reason", "repairer", "created_at", "changed_at"),
)
_LEASE = ("token_type", "expires_at", "scopes", "generation", "connection_id")

InputFile = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is the standard input


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


def show_rows(rows: Iterable[Row], columns: tuple[str, ...], output: Format) -> None:
    """A list: a table of `columns`, or a JSON array with every member."""
    if output is Format.JSON:
        print(json.dumps(list(rows), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    width = None if sys.stdout.isatty() else 10_000  # in a file or a pipe nothing is folded
    Console(highlight=False, markup=False, width=width).print(table)


def show_one(row: Row, output: Format) -> None:
    """One object: a line for each member, or a JSON object."""
    if output is Format.JSON:
        print(json.dumps(row, indent=2))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name:<{width}}  {_cell(value)}")


def show_live(connection: Connection, output: Format) -> None:
    """A connection beside its workflow's description; `differs` marks where they disagree."""
    row = connection_row(connection)
    live = None if connection.live is None else row_of(connection.live)
    if output is Format.JSON:
        show_one({**row, "live": live, "differs": list(connection.differs)}, output)
        return
    show_one(row, output)
    if live is not None:
        print()
        rows = (
            {
                "member": name,
                "store": row.get(name, ""),
                "workflow": value,
                "differs": "differs" if name in connection.differs else "",
            }
            for name, value in live.items()
        )
        show_rows(rows, ("member", "store", "workflow", "differs"), output)


def show_error(error: EvergrantError) -> None:
    """One line on stderr: code, detail, repair, and the seconds to wait if the server named them."""
    detail = f": {printable(error.detail)}" if error.detail else ""
    wait = "" if error.retry_after is None else f" Retry-After: {ceil(error.retry_after)} seconds"
    print(f"evergrant: {error.code}{detail} ({printable(error.repair)}){wait}", file=sys.stderr)


def row_of(model: "DataclassInstance") -> dict[str, object]:
    """Every field of a model, as JSON values."""
    return _row(model, tuple(field.name for field in fields(model)))


def connection_row(connection: Connection) -> Row:
    row = _row(connection, _CONNECTION)
    if connection.reason == "choice_required":
        row["choices"] = ", ".join(f"{choice.id} ({choice.label})" for choice in connection.choices)
    if connection.device is not None:
        row["user_code"] = connection.device.user_code
        row["verification_uri"] = connection.device.verification_uri
    if connection.provider_said is not None:
        row |= _said_row(connection.provider_said)
    if connection.connect_url is not None:
        row |= _row(connection, ("connect_url", "connect_expires_at"))
    return row


def _said_row(said: ProviderSaid) -> Row:
    """The provider's words in one line, for an admin."""
    by = "unauthenticated" if said.unauthenticated else None
    words = ": ".join(filter(None, (said.error, said.description)))
    parts = (by, None if said.status is None else f"status {said.status}", words)
    shown = {"provider_said": ", ".join(filter(None, parts)) or None, "provider_said_at": said.at.isoformat()}
    return shown if said.reference is None else {**shown, "reference": said.reference}


def lease_row(lease: Lease, *, show_token: bool) -> Row:
    token = lease.access_token if show_token else "(hidden: --show prints it)"
    return {"access_token": token, **_row(lease, _LEASE)}


def printable(text: str) -> str:
    """Without control characters: a server's text must not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _row(source: object, names: tuple[str, ...]) -> dict[str, object]:
    return {name: _json_value(getattr(source, name)) for name in names}


def _json_value(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case StrEnum():
            return value.value
        case tuple():
            return list(cast(tuple[object, ...], value))
        case Mapping():
            return dict(cast(Mapping[str, object], value))
        case _:
            return value


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case list() | tuple():
            return " ".join(str(part) for part in cast(list[object], value)) or "-"
        case dict():
            return json.dumps(value)
        case _:
            return printable(str(value))


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """The API key itself is no option: every process of the machine could read it."""

    output: Annotated[Format, Parameter(name=["--output", "-o"])] = Format.TABLE
    "As a table for people, or as JSON."

    url: str | None = None
    "Evergrant's URL; by default EVERGRANT_URL."

    api_key_file: Path | None = None
    "File with the app's API key; by default EVERGRANT_API_KEY, EVERGRANT_API_KEY_FILE or evergrant login."

    def client(self) -> Evergrant:
        key = read_key_file(self.api_key_file) if self.api_key_file else token_for(self.url)
        return Evergrant(self.url, key)


DEFAULTS = Options()


def _generation(_: type[int], tokens: Sequence[Token]) -> int:
    """A generation as a lease shows it. By itself cyclopts reads 7.6 as 8, and none as no value."""
    value = tokens[0].value
    if not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise ValueError("a generation is a whole number from 1 on, as the lease shows it")
    return int(value)


Generation = Annotated[int, Parameter(converter=_generation)]


def read_text(file: Path) -> str:
    """The text of a file, or of the standard input for `-`. Raises BadRequest."""
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise argument_error(f"{file}: {reason}") from None


def read_json_object(file: Path) -> dict[str, object]:
    """The JSON object in a file. Raises BadRequest."""
    try:
        value: object = json.loads(read_text(file))
    except ValueError:
        raise argument_error(f"{file} is not JSON") from None
    if not isinstance(value, dict):
        raise argument_error(f"{file} is not a JSON object")
    return cast(dict[str, object], value)


def argument_error(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Correct the argument.")


def name_and_value(text: str) -> tuple[str, str]:
    """An argument of the form NAME=VALUE. Raises BadRequest."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argument_error(f"{text!r} is not NAME=VALUE")
    return name, value
