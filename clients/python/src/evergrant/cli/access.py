"""`evergrant access`: who reaches what, through which permit, and why not."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.calls.access import AccessExplanation
from evergrant.cli.output import DEFAULTS, Format, Options, Row, row_of, show_one, show_rows

_REPORT = (
    *("app", "permit", "integration", "subjects", "actions", "scope_ceiling"),
    *("live_connections", "app_last_used_at", "app_disabled", "authentic"),
)
_SUMMARY = ("app", "connection_id", "integration", "subject", "action", "scopes", "allowed", "reason")

access = App(name="access", help="Which app reaches what, through which permit: for admins.")


@access.command
def explain(
    app: str,
    connection_id: str,
    /,
    *scopes: str,
    action: str = "token",
    options: Options = DEFAULTS,
) -> None:
    """Show whether an app may use a connection now, by which permit, and why not by the others.

    Args:
        scopes: Those that the app would request of a lease. All of the token's count anyway.
        action: token, connect, admin, proxy, or export, which is judged for the whole tenant.
    """
    with options.client() as client:
        found = client.explain_access(app, connection_id, scopes, action=action)
    row = asdict(found)
    if options.output is Format.JSON:
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
        show_rows((row_of(it) for it in found.stopped_by), ("code", "detail"), options.output)
    else:
        print("Nothing else stops it.")


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
            show_rows((row_of(it) for it in client.access_report()), _REPORT, options.output)


def _permits(found: AccessExplanation) -> Iterator[Row]:
    if found.decided_by is not None:
        yield {"permit": found.decided_by, "result": "allows it"}
    for name in found.also_allowed_by:
        yield {"permit": name, "result": "allows it too"}
    for other in found.why_not:
        above = f" ({' '.join(other.scopes)})" if other.scopes else ""
        yield {"permit": other.permit, "result": f"is for another {other.field}{above}"}
