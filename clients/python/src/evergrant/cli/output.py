"""How results and errors look: a table for people, JSON for programs, one line for an error."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from math import ceil

from rich.console import Console
from rich.table import Table

from evergrant.errors import EvergrantError
from evergrant.models import App, AuditRecord, Connection, Lease, LiveStatus, Proof, Provider

Row = Mapping[str, object]


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


def show_rows(rows: Iterable[Row], columns: tuple[str, ...], output: Format) -> None:
    """Many things: a table of `columns`, or a JSON array with everything."""
    if output is Format.JSON:
        print(json.dumps(list(rows), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    _console().print(table)


def show_one(row: Row, output: Format) -> None:
    """One thing: name and value on a line each, or a JSON object."""
    if output is Format.JSON:
        print(json.dumps(row, indent=2))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name:<{width}}  {_cell(value)}")


def show_live(connection: Connection, output: Format) -> None:
    """A connection beside what its workflow says of it; `differs` marks where they disagree."""
    row = connection_row(connection)
    said = None if connection.live is None else live_row(connection.live)
    if output is Format.JSON:
        show_one({**row, "live": said, "differs": list(connection.differs)}, output)
        return
    show_one(row, output)
    if said is not None:
        print()
        rows = (
            {
                "member": name,
                "store": row.get(name, ""),
                "workflow": value,
                "differs": "differs" if name in connection.differs else "",
            }
            for name, value in said.items()
        )
        show_rows(rows, ("member", "store", "workflow", "differs"), output)


def show_error(error: EvergrantError) -> None:
    """One line on stderr: code, what happened, what to do, and after how long if the server said it."""
    detail = f": {_line(error.detail)}" if error.detail else ""
    wait = "" if error.retry_after is None else f" Retry-After: {ceil(error.retry_after)} seconds"
    print(f"evergrant: {error.code}{detail} ({_line(error.repair)}){wait}", file=sys.stderr)


def connection_row(connection: Connection) -> Row:
    row: dict[str, object] = {
        "id": connection.id,
        "integration": connection.integration,
        "provider": connection.provider,
        "subject": connection.subject,
        "label": connection.label,
        "flow": connection.flow,
        "state": connection.state.value,
        "generation": connection.generation,
        "scopes": list(connection.scopes),
        "expires_at": _time(connection.expires_at),
        "reason": connection.reason,
        "repairer": connection.repairer,
        "created_at": _time(connection.created_at),
        "changed_at": _time(connection.changed_at),
    }
    if connection.reason == "choice_required":
        row["choices"] = ", ".join(f"{it.id} ({it.label})" for it in connection.choices)
    if connection.device is not None:
        row["user_code"] = connection.device.user_code
        row["verification_uri"] = connection.device.verification_uri
    if connection.connect_url is not None:
        row["connect_url"] = connection.connect_url
        row["connect_expires_at"] = _time(connection.connect_expires_at)
    return row


def live_row(live: LiveStatus) -> Row:
    return {
        "state": live.state.value,
        "generation": live.generation,
        "expires_at": _time(live.expires_at),
        "reason": live.reason,
        "repairer": live.repairer,
        "failures": live.failures,
        "next_step": live.next_step,
        "next_at": _time(live.next_at),
    }


def lease_row(lease: Lease, *, show_token: bool) -> Row:
    return {
        "access_token": lease.access_token if show_token else "(hidden: --show prints it)",
        "token_type": lease.token_type,
        "expires_at": _time(lease.expires_at),
        "scopes": list(lease.scopes),
        "generation": lease.generation,
        "connection_id": lease.connection_id,
    }


def proof_row(made: Proof) -> Row:
    return {
        "proof": made.proof,
        "htu": made.htu,
        "generation": made.generation,
        "expires_at": _time(made.expires_at),
        "connection_id": made.connection_id,
    }


def audit_row(item: AuditRecord) -> Row:
    return {
        "seq": item.seq,
        "lane": item.shard,
        "at": _time(item.at),
        "action": item.action,
        "object": item.object,
        "by": item.by,
        "trace_id": item.trace_id,
        "detail": dict(item.detail),
        "workflow_run_id": item.workflow_run_id,
        "workflow_event_id": item.workflow_event_id,
    }


def provider_row(provider: Provider) -> Row:
    return provider.facts


def app_row(app: App) -> Row:
    return {"id": app.id, "name": app.name, "disabled": app.disabled, "created_at": _time(app.created_at)}


def _console() -> Console:
    # Into a file or a pipe nothing may be folded to the width of a terminal that isn't there.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case list() | tuple():
            return " ".join(str(part) for part in value) or "-"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # a JSON list of anything
        case dict():
            return json.dumps(value)
        case _:
            return _line(str(value))


def _line(text: str) -> str:
    """Without control characters: what the server says must not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
