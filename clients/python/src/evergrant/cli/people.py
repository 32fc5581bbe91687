"""`evergrant people`: where people who administer log in, their roles, and their sessions."""

from cyclopts import App

from evergrant.cli.given.values import Scopes
from evergrant.cli.output import DEFAULTS, Options, argument_error, row_of
from evergrant.cli.show.tables import show_one, show_rows

_SESSIONS = ("id", "live", "name", "person", "role", "kind", "created_at", "last_used_at", "expires_at")

people = App(name="people", help="People who administer: where they log in, their roles and sessions.")


@people.command
def put(
    integration: str,
    /,
    *,
    admin: tuple[str, ...] = (),
    auditor: tuple[str, ...] = (),
    claim: str = "groups",
    scope: Scopes = (),
    options: Options = DEFAULTS,
) -> None:
    """Have people log in at the issuer of an integration. A change ends the sessions of all people.

    Args:
        admin: A group of the issuer whose people administer the tenant; exact, and may be repeated.
        auditor: A group whose people read everything and change nothing.
        claim: The claim that has the groups.
        scope: A scope to request beside openid, where the issuer tells the groups for one.
    """
    given = {"tenant_admin": admin, "auditor": auditor}
    roles = {role: groups for role, groups in given.items() if groups}
    if not roles:
        raise argument_error("no group has a role: name one with --admin or --auditor")
    with options.client() as client:
        made = client.put_admin_login(integration, roles, groups_claim=claim, scopes=scope)
        show_one(row_of(made), options.output)


@people.command
def show(*, options: Options = DEFAULTS) -> None:
    """Show where people log in, and which groups have which role."""
    with options.client() as client:
        show_one(row_of(client.admin_login()), options.output)


@people.command(name="rm")
def remove(*, options: Options = DEFAULTS) -> None:
    """Let no people log in. Ends the sessions of all people."""
    with options.client() as client:
        client.delete_admin_login()


@people.command
def sessions(*, options: Options = DEFAULTS) -> None:
    """List who is logged in; ended sessions for thirty days."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.sessions()), _SESSIONS, options.output)


@people.command
def end(session_id: str, /, *, options: Options = DEFAULTS) -> None:
    """End a session. Requests with it are refused at once."""
    with options.client() as client:
        client.end_session(session_id)
