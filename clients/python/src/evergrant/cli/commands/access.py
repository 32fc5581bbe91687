"""`evergrant access`: who reaches what, through which permit, and why not."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from evergrant.api.models import AccessExplanation, ReachedPermit
from evergrant.cli.arguments import in_utc, name_and_value, read_object
from evergrant.cli.commands.permits import USUAL
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, Row, row_of, show_one, show_rows

_REPORT = (
    *("app", "permit", "effect", "mode", "integration", "subjects", "actions", "scope_ceiling"),
    *("live_connections", "last_used_at", "expires_at", "app_disabled", "authentic"),
)
_SUMMARY = (
    *("app", "connection_id", "integration", "subject", "action", "scopes"),
    *("allowed", "reason", "valid_until", "down_scoping"),
)

_REACH = ("words", "connections", "last_used_at", "expires_at", "permit")
_NAMED = 3  # connections of a permit

_OTHER = {"expiry": "has ended", "exact_scopes": "insists on a token without more scopes"}
_SIMULATED = ("app", "since", "judged", "complete", "lost")
_LOST = ("connection_id", "integration", "subject", "leased_at", "reason", "permit")
_LOST_USES = ("connection_id", "subject", "action", "request", "uses", "last_at", "reason", "permit")
_UNUSED = ("id", "integration", "subject", "label", "state", "created_at", "used_at")
_CHANGES = ("at", "action", "object", "by", "detail", "before")

access = App(name="access")


@access.command
def explain(
    app: str,
    connection_id: str,
    /,
    *scopes: str,
    action: str = "token",
    address: str | None = None,
    method: str | None = None,
    path: str | None = None,
    tool: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show whether an app may use a connection now, by which permit, and why not by the others.

    Args:
        scopes: Those that the app would request of a lease. All of the token's count anyway.
        action: token, connect, admin, proxy, or export, which is judged for the whole tenant.
        address: The app's address, for permits with sources. Without it, it isn't known.
        method: Of a request to the provider's API, for the action proxy.
        path: Its path behind the API's base URL, such as /user/repos.
        tool: The same of a tool of an MCP server.
    """
    with options.client() as client:
        request = {"address": address, "method": method, "path": path, "tool": tool}
        explanation = client.explain_access(app, connection_id, scopes=scopes, action=action, **request)
    row = row_of(explanation)
    if options.output is not Format.TABLE:
        show_one(row, options.output)
        return
    show_one({name: row[name] for name in _SUMMARY}, options.output)
    print()
    show_rows(_permits(explanation), ("permit", "result"), options.output)
    if explanation.omitted:
        print(f"and {explanation.omitted} more")
    print()
    if explanation.stopped_by:
        print("Stopped by:")
        show_rows(explanation.stopped_by, ("code", "detail"), options.output)
    else:
        print("Nothing else stops it.")


@access.command
def reach(app: str, /, *, options: Options = DEFAULTS) -> None:
    """Show in plain words what an app or agent can reach: through which permit, until when, used when.

    Args:
        app: Its name.
    """
    with options.client() as client:
        permits = list(client.app_reach(app))
    if permits and options.output is Format.TABLE:
        _say_who(app, permits[0])
    show_rows((_reached(permit) for permit in permits), _REACH, options.output)


@access.command
def report(*, csv: Annotated[bool, Parameter(negative=())] = False, options: Options = DEFAULTS) -> None:
    """List every permit with what it reaches: live connections, and when its app was last used.

    Args:
        csv: As one CSV file. Cells that a spreadsheet would take for a formula begin with an apostrophe.
    """
    with options.client() as client:
        if csv:
            for piece in client.access_report_csv():
                print(piece.replace("\r\n", "\n"), end="")
        else:
            show_rows(client.access_report(), _REPORT, options.output, usual=USUAL)


@access.command
def changes(
    *, since: datetime | None = None, until: datetime | None = None, options: Options = DEFAULTS
) -> None:
    """List what changed about who may do what: apps, keys, permits, requests, integrations.

    Args:
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
        until: The moment before which it happened.
    """
    since, until = in_utc(since), in_utc(until)
    with options.client() as client:
        show_rows(client.access_changes(since=since, until=until), _CHANGES, options.output)


@access.command
def unused(*, since: datetime | None = None, options: Options = DEFAULTS) -> None:
    """List connections that were never used; with `--since` those that were not used since then.

    Args:
        since: A moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
    """
    with options.client() as client:
        show_rows(client.unused_connections(since=in_utc(since)), _UNUSED, options.output)


@access.command
def simulate(
    app: str,
    /,
    *,
    without: tuple[str, ...] = (),
    put: tuple[str, ...] = (),
    days: float = 30,
    options: Options = DEFAULTS,
) -> None:
    """Show what an app would lose by a change of its permits: connections that it has leased, leases, calls.

    Args:
        without: A permit that would be removed, once for each.
        put: NAME=FILE: a permit as it would become, as JSON, once for each.
        days: How far back leases count.
    """
    changed: dict[str, Mapping[str, Any] | None] = dict.fromkeys(without)
    for name, file in map(name_and_value, put):
        changed[name] = read_object(Path(file))
    since = datetime.now(UTC) - timedelta(days=days)
    with options.client() as client:
        simulation = client.simulate_access(app, changed, since=since)
    row = row_of(simulation)
    if options.output is not Format.TABLE:
        show_one(row, options.output)
        return
    show_one({name: row[name] for name in _SIMULATED}, options.output)
    print()
    show_rows(simulation.would_lose, _LOST, options.output)
    uses = simulation.uses
    newest = "" if uses.complete else "the newest "
    print(f"\nOf {newest}{uses.judged} recorded leases and calls {uses.lost} would be refused.")
    if uses.would_lose:
        show_rows(uses.would_lose, _LOST_USES, options.output)


def _say_who(app: str, first: ReachedPermit) -> None:
    if first.sponsor is not None and first.agent_ends_at is not None:
        print(f"{app} is an agent of {first.sponsor}, until {first.agent_ends_at:%Y-%m-%d %H:%M %Z}.")
    if first.stopped_by is not None:
        print(f"Nothing now: its requests are refused with {first.stopped_by}.")


def _reached(permit: ReachedPermit) -> Row:
    names = [f"{connection.subject} at {connection.integration}" for connection in permit.covered[:_NAMED]]
    if permit.live_connections > len(names):
        names.append(f"{permit.live_connections - len(names)} more")
    return {**row_of(permit), "connections": ", ".join(names)}


def _permits(explanation: AccessExplanation) -> Iterator[Row]:
    if explanation.decided_by is not None:
        yield {
            "permit": explanation.decided_by,
            "result": "allows it" if explanation.allowed else "denies it",
        }
    for names, result in (
        (explanation.also_denied_by, "denies it too"),
        (explanation.also_allowed_by, "allows it too" if explanation.allowed else "would allow it"),
        (explanation.observed_by, "would deny it in mode enforce"),
    ):
        yield from ({"permit": name, "result": result} for name in names)
    for permit in explanation.why_not:
        above = f" ({' '.join(permit.scopes)})" if permit.scopes else ""
        why = _OTHER.get(permit.field, f"is for another {permit.field}")
        yield {"permit": permit.permit, "result": f"{why}{above}"}
