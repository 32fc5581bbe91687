"""What every command shares: its options, arguments that are read in a special way, and the rows it shows.

One line for an error.
"""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import yaml
from cyclopts import Parameter, Token

from evergrant.cli.given.near_names import name_what_is_missing
from evergrant.cli.show.tables import Format, Row, show_one, show_rows
from evergrant.cli.start.lines import line_to_copy
from evergrant.cli.start.reachable import require_listener
from evergrant.cli.start.settings_file import SETTINGS_FILE, environment
from evergrant.errors import BadRequest, EvergrantError
from evergrant.identity.session_file import token_for
from evergrant.lease import Lease
from evergrant.models import Connection, ProviderSaid
from evergrant.origins import ServerAddress, read_key_file
from evergrant.sync_client import Evergrant

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CONNECTION = (
    *("id", "integration", "provider", "subject", "label", "flow", "state", "generation", "scopes"),
    *("expires_at", "reason", "repairer", "created_at", "changed_at"),
)
_LEASE = ("token_type", "expires_at", "scopes", "generation", "connection_id")

_OTHER_SERVER = (
    f"Set EVERGRANT_API_KEY_FILE; or unset EVERGRANT_URL, and the server of {SETTINGS_FILE} is meant."
)

InputFile = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is the standard input


def show_live(connection: Connection, output: Format) -> None:
    """A connection beside its workflow's description; `differs` marks where they disagree."""
    row = connection_row(connection)
    live = None if connection.live is None else row_of(connection.live)
    if output is not Format.TABLE:
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
    wait = "" if error.retry_after is None else f" Retry-After: {ceil(error.retry_after)} seconds"
    print(f"evergrant: {error}{wait}", file=sys.stderr)


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
        if connection.provider_said.reason == "client_rejected":
            show = line_to_copy("evergrant", "integrations", "get", connection.integration)
            row["repair"] = f"its client id, secret and redirect URI have to be the provider's: {show}"
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


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """The API key itself is no option: every process of the machine could read it."""

    output: Annotated[Format, Parameter(name=["--output", "-o"])] = Format.TABLE
    "As a table for people, as JSON or as YAML."

    url: str | None = None
    "Evergrant's URL; by default EVERGRANT_URL, or that of evergrant.env in this folder."

    api_key_file: Path | None = None
    "File with the app's API key; by default EVERGRANT_API_KEY(_FILE), evergrant.env or login."

    @contextmanager
    def client(self) -> Generator[Evergrant]:
        """The client, once its server has accepted a connection. Raises EvergrantError."""
        with self._connected() as client:
            try:
                yield client
            except EvergrantError as error:
                if error.code == "not_found":
                    name_what_is_missing(client, error)
                raise

    def _connected(self) -> Evergrant:
        url = self.address()
        require_listener(url)
        env = environment(self.url)
        key = read_key_file(self.api_key_file.expanduser()) if self.api_key_file else token_for(url, env)
        try:
            server = ServerAddress.from_settings(url, key, environ=env)
        except BadRequest as error:
            if error.code == "api_key_missing" and Path(SETTINGS_FILE).exists():
                error.repair = _OTHER_SERVER
            raise
        key, identity = server.api_key or None, server.identity
        return Evergrant(server.url, key, identity=identity, issuer=server.issuer, allow_plain_http=True)

    def address(self) -> str:
        """The server's URL alone, for commands that send no credential."""
        env = environment(self.url)
        return ServerAddress.from_settings(self.url, "none", environ=env).url


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


def read_object(file: Path) -> dict[str, object]:
    """The object in a file of JSON or YAML, of which JSON is a part. Raises BadRequest."""
    try:
        value: object = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise argument_error(f"{file}{where}: is neither YAML nor JSON") from None
    if not isinstance(value, dict):
        raise argument_error(f"{file} is no object: it begins with the members' names, such as name: acme")
    return cast(dict[str, object], value)


def argument_error(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Correct the argument.")


def header_of(text: str) -> tuple[str, str]:
    """An argument of the form NAME: VALUE. Raises BadRequest."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argument_error(f"{text!r} is not NAME: VALUE")
    return name.strip(), value.strip()


def name_and_value(text: str) -> tuple[str, str]:
    """An argument of the form NAME=VALUE. Raises BadRequest."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argument_error(f"{text!r} is not NAME=VALUE")
    return name, value
