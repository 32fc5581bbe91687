"""`evergrant incident`: a breach drill, or what follows a leak of keys; its report, and the check of one.

`evergrant connections bulk`: one act on many connections, which a worker carries out likewise.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Literal

from cyclopts import App, Parameter

from evergrant.api.models import Incident
from evergrant.cli.arguments import require_audit_extra
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest
from evergrant.models import State
from evergrant.sync_client import Evergrant

Kind = Literal["breach", "leak"]
_INCIDENTS = ("id", "kind", "integration", "app", "state", "paused", "ended", "selected", "reason")
_CONNECTIONS = (
    "connection_id",
    "subject",
    "integration",
    "step",
    "outcome",
    "state",
    "reconnected",
    "last_leased_at",
)
_INTEGRATIONS = ("integration", "provider", "connections", "revokes", "replaces", "secret")
_STEPS = ("by", "connections", "text", "command")

_ORDERS = ("id", "action", "state", "paused", "ended", "selected", "reason", "created_at")
_ORDERED = ("connection_id", "subject", "integration", "step", "outcome", "state")

incident = App(name="incident")
bulk = App(name="bulk", help="One act on many connections: refresh, reconnect, revoke, label.")
BulkAction = Literal["refresh", "reconnect", "revoke", "label"]
verb(bulk, "ls list", "bulk_orders", "List the tenant's bulk orders.", _ORDERS)
verb(bulk, "show get", "bulk_order", "Show how far a bulk order is, and how many connections ended how.")
verb(bulk, "pause", "pause_bulk_order", "Have a bulk order rest at the end of its page.")
verb(bulk, "resume", "resume_bulk_order", "Have a paused bulk order go on.")

verb(incident, "ls list", "incidents", "List the incidents of the tenant.", _INCIDENTS)
verb(incident, "show get", "incident", "Show how far an incident is, and what a person has to do.")
verb(incident, "pause", "pause_incident", "Have an incident rest at the end of its page.")
verb(incident, "resume", "resume_incident", "Have a paused incident go on.")


@incident.command
def plan(
    kind: Kind,
    /,
    *,
    integration: str | None = None,
    app: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show what an incident would be about, and what would follow. Changes nothing.

    Args:
        kind: `breach`: tokens may have leaked; `leak`: keys of Evergrant may have.
        integration: Only its connections.
        app: Of a breach: only what this app has leased.
        since: Of a breach: only what was leased since then, in UTC.
        until: Of a breach: only what was leased before then, in UTC.
    """
    with options.client() as client:
        planned = client.incident_plan(
            kind, integration=integration, app=app, since=_in_utc(since), until=_in_utc(until)
        )
    if options.output != "table":
        show_one(planned, options.output)
        return
    most = "" if planned.exact else "at most "
    print(f"{most}{planned.connections:,} connections; to confirm: --confirm {planned.confirm}")
    show_rows(planned.integrations, _INTEGRATIONS, options.output)
    show_rows(planned.steps, _STEPS, options.output)


@incident.command
def start(
    kind: Kind,
    /,
    *,
    reason: str,
    confirm: str,
    integration: str | None = None,
    app: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    wait: float | None = None,
    roots_replaced: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Stop, revoke and shred connections for good, or replace what leaked keys protect.

    Args:
        kind: `breach`: tokens may have leaked; `leak`: keys of Evergrant may have.
        reason: For the audit log and the report: name a ticket, and no person.
        confirm: The name of what it is about, as `evergrant incident plan` prints it.
        integration: Only its connections.
        app: Of a breach: only what this app has leased. The app is disabled.
        since: Of a breach: only what was leased since then, in UTC.
        until: Of a breach: only what was leased before then, in UTC.
        wait: Seconds after which it is reported how far the connections are.
        roots_replaced: After a leak: the roots are new, by `keys rotate` and `keys rewrap` on the host.
    """
    with options.client() as client:
        begun = client.open_incident(
            kind,
            confirm=confirm,
            reason=reason,
            integration=integration,
            app=app,
            since=_in_utc(since),
            until=_in_utc(until),
            wait=None if wait is None else timedelta(seconds=wait),
            roots_replaced=roots_replaced,
        )
    show_one(begun, options.output)


@incident.command
def connections(incident_id: str, /, *, outcome: str | None = None, options: Options = DEFAULTS) -> None:
    """List the connections of an incident.

    Args:
        outcome: Only these: confirmed, nothing_held, not_supported, unknown, renewed, reconnect, gone.
    """
    with options.client() as client:
        listed = client.incident_connections(incident_id, outcome=outcome)
        show_rows(listed, _CONNECTIONS, options.output)


@incident.command
def report(incident_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS) -> None:
    """Print the signed report of an incident that is done, as JSON Lines.

    Args:
        out: A new file for it.
    """
    with options.client() as client:
        pages = _report_pages(client, incident_id)
        first = next(pages)  # before the file is made
        if out is None:
            for content in chain([first], pages):
                sys.stdout.buffer.write(content)
            return
        lines = 0
        with out.open("xb") as file:
            try:
                for content in chain([first], pages):
                    file.write(content)
                    lines += content.count(b"\n")
            except BaseException:
                out.unlink()  # a part of a report is none
                raise
    print(f"evergrant: {out} has {lines} lines", file=sys.stderr)


def _report_pages(client: Evergrant, incident_id: str) -> Iterator[bytes]:
    """Raises BadRequest while the incident isn't done."""
    after: str | None = ""
    while after is not None:
        page = client.incident_report(incident_id, after)
        if isinstance(page, Incident):
            why = f"{page.ended} of {page.selected} connections have ended"
            raise BadRequest(f"It isn't done: {why}.", code="not_done", repair="Ask again later.")
        yield page.content
        after = page.next


@incident.command
def verify(file: Path, /, *, key: str | None = None, options: Options = DEFAULTS) -> None:
    """Check a report without Evergrant: every line, and the signature. Ends with 1 for one that is changed.

    Args:
        file: As `evergrant incident report` has written it.
        key: The public key of the audit log that you have kept (`evergrant audit key`).
    """
    require_audit_extra()
    from evergrant.incident_report import ReportError, verify_report

    with file.open("rb") as lines:
        try:
            checked = verify_report(lines, key)
        except ReportError as error:
            raise BadRequest(f"{file}: {error}", code="report_refused", repair="Fetch it again.") from None
    if not checked.compared:
        hint = "it is as this key has signed it; give --key to compare it with the one that you have kept"
        print(f"evergrant: {hint}", file=sys.stderr)
    show_one(checked, options.output)


@Parameter(name="*")
@dataclass(frozen=True)
class Chosen:
    """The options of `bulk`: which connections. Without any: all that haven't ended."""

    integration: str | None = None
    "Only its connections."
    state: State | None = None
    "Only those in this state."
    failing: bool = False
    "Only active ones whose refresh fails, or whose account is to be chosen."
    search: str | None = None
    "Only those whose subject, label or id begins so."
    connection: tuple[str, ...] = ()
    "Only this one, instead of the other options; may be repeated."


@bulk.command(name="plan")
def plan_bulk(action: BulkAction, /, *, chosen: Chosen = Chosen(), options: Options = DEFAULTS) -> None:
    """Show what a bulk order would be about, and how it would be carried out. Changes nothing."""
    with options.client() as client:
        planned = client.bulk_plan(
            action,
            integration=chosen.integration,
            state=chosen.state,
            failing=chosen.failing or None,
            search=chosen.search,
            connections=" ".join(chosen.connection) or None,
        )
    if options.output is not Format.TABLE:
        show_one(planned, options.output)
        return
    most = "" if planned.totals.complete else "at least "
    confirm = f"; to confirm: --confirm {planned.confirm}" if planned.confirm else ""
    print(f"{most}{planned.totals.total:,} connections{confirm}")
    print(planned.how)


@bulk.command(name="start")
def start_bulk(
    action: BulkAction,
    /,
    *,
    reason: str,
    chosen: Chosen = Chosen(),
    label: str | None = None,
    confirm: str | None = None,
    wait: float | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Have a worker do it with each of the connections.

    Args:
        reason: For the audit log: name a ticket, and no person.
        label: With `label`: the one that connections get.
        confirm: With `revoke` and `label`: what `evergrant connections bulk plan` prints.
        wait: Seconds after which it is over, however far the connections are.
    """
    with options.client() as client:
        begun = client.open_bulk_order(
            action,
            reason=reason,
            connections=chosen.connection or None,
            integration=chosen.integration,
            state=chosen.state,
            failing=chosen.failing,
            search=chosen.search,
            label=label,
            confirm=confirm,
            wait=None if wait is None else timedelta(seconds=wait),
        )
    show_one(begun, options.output)


@bulk.command(name="connections")
def bulk_connections(bulk_id: str, /, *, outcome: str | None = None, options: Options = DEFAULTS) -> None:
    """List what became of each connection of a bulk order.

    Args:
        outcome: Only those that have ended so, such as renewed, failed, reconnect or taken.
    """
    with options.client() as client:
        show_rows(client.bulk_connections(bulk_id, outcome=outcome), _ORDERED, options.output)


def _in_utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
