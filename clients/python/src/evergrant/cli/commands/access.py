"""`evergrant access`: who reaches what, through which permit, and why not."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from evergrant.api.models import AccessExplanation, ReachedPermit
from evergrant.cli.arguments import name_and_value, read_object
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
        found = client.explain_access(app, connection_id, scopes=scopes, action=action, **request)
    row = row_of(found)
    if options.output is not Format.TABLE:
        show_one(row, options.output)
        return
    show_one({name: row[name] for name in _SUMMARY}, options.output)
    print()
    show_rows(_permits(found), ("permit", "result"), options.output)
    if found.omitted:
        print(f"and {found.omitted} more")
    print()
    if found.stopped_by:
        print("Stopped by:")
        show_rows(found.stopped_by, ("code", "detail"), options.output)
    else:
        print("Nothing else stops it.")


@access.command
def reach(app: str, /, *, options: Options = DEFAULTS) -> None:
    """Show in plain words what an app or agent can reach: through which permit, until when, used when.

    Args:
        app: Its name.
    """
    with options.client() as client:
        found = list(client.app_reach(app))
    if found and options.output is Format.TABLE:
        _say_who(app, found[0])
    show_rows((_reached(it) for it in found), _REACH, options.output)


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
    since, until = _in_utc(since), _in_utc(until)
    with options.client() as client:
        show_rows(client.access_changes(since=since, until=until), _CHANGES, options.output)


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
    """Show which of the connections that an app has leased it couldn't lease after a change of its permits.

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
        found = client.simulate_access(app, changed, since=since)
    row = row_of(found)
    if options.output is not Format.TABLE:
        show_one(row, options.output)
        return
    show_one({name: row[name] for name in _SIMULATED}, options.output)
    print()
    show_rows(found.would_lose, _LOST, options.output)


def _in_utc(at: datetime | None) -> datetime | None:
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)


def _say_who(app: str, first: ReachedPermit) -> None:
    if first.sponsor is not None and first.agent_ends_at is not None:
        print(f"{app} is an agent of {first.sponsor}, until {first.agent_ends_at:%Y-%m-%d %H:%M %Z}.")
    if first.stopped_by is not None:
        print(f"Nothing now: its requests are refused with {first.stopped_by}.")


def _reached(found: ReachedPermit) -> Row:
    names = [f"{it.subject} at {it.integration}" for it in found.covered[:_NAMED]]
    if found.live_connections > len(names):
        names.append(f"{found.live_connections - len(names)} more")
    return {**row_of(found), "connections": ", ".join(names)}


def _permits(found: AccessExplanation) -> Iterator[Row]:
    if found.decided_by is not None:
        yield {"permit": found.decided_by, "result": "allows it" if found.allowed else "denies it"}
    for names, result in (
        (found.also_denied_by, "denies it too"),
        (found.also_allowed_by, "allows it too" if found.allowed else "would allow it"),
        (found.observed_by, "would deny it in mode enforce"),
    ):
        yield from ({"permit": name, "result": result} for name in names)
    for other in found.why_not:
        above = f" ({' '.join(other.scopes)})" if other.scopes else ""
        why = _OTHER.get(other.field, f"is for another {other.field}")
        yield {"permit": other.permit, "result": f"{why}{above}"}
