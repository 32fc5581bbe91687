"""`evergrant permits`: what apps may do, and what they may not."""

from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.cli.given.values import Scopes
from evergrant.cli.output import DEFAULTS, Options, row_of
from evergrant.cli.show.tables import show_one, show_rows

_PERMITS = (
    *("name", "effect", "mode", "integration", "provider", "subjects", "actions"),
    *("scope_ceiling", "expires_at", "owner"),
)

USUAL = {"effect": "allow", "mode": "enforce", "provider": "*", "app_disabled": False, "authentic": True}

permits = App(name="permits", help="What apps may do. A deny wins.")


@permits.command(name=("ls", "list"))
def list_permits(app: str, /, *, options: Options = DEFAULTS) -> None:
    """List the permits of an app."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.permits(app)), _PERMITS, options.output, usual=USUAL)


@permits.command
def get(app: str, name: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one permit of an app."""
    with options.client() as client:
        show_one(row_of(client.permit(app, name)), options.output)


@permits.command
def put(
    app: str,
    name: str,
    /,
    *,
    integration: str,
    action: tuple[str, ...],
    deny: Annotated[bool, Parameter(negative=())] = False,
    observe: Annotated[bool, Parameter(negative=())] = False,
    provider: str = "*",
    subject: tuple[str, ...] = ("*",),
    connection: tuple[str, ...] = (),
    source: tuple[str, ...] = (),
    scope: Scopes = (),
    method: tuple[str, ...] = (),
    path: tuple[str, ...] = (),
    tool: tuple[str, ...] = (),
    exact_scopes: Annotated[bool, Parameter(negative=())] = False,
    call_approval: Annotated[bool, Parameter(negative=())] = False,
    expires: datetime | None = None,
    purpose: str = "",
    owner: str = "",
    reason: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Create a permit, or replace all of one. What may be given several times: action to tool.

    Args:
        integration: Its name, or * for every one.
        action: token, connect, admin, audit, export or proxy.
        deny: Refuse what fits, instead of allowing it.
        observe: Of a deny: refuse nothing, and have it recorded what it would refuse.
        provider: Its name, or * for every one.
        subject: An exact subject; one that ends in * stands for all that begin so. All by default.
        connection: The id of a connection. Any by default.
        source: A network that the app calls from, 10.1.0.0/16. Any by default.
        scope: A scope that a token may have, or that a deny refuses. Any by default.
        method: Of the action proxy: a method of requests to the provider's API. Any by default.
        path: The same of a path: /repos/*/issues, /contacts/**. Any by default. A deny is best effort: an API
            may know a path by other names. Rather allow what is needed.
        tool: Of the action proxy: a tool of an MCP server; search_* for all that begin so. Any by default.
        exact_scopes: Refuse a lease whose token can do more than it requests.
        call_approval: Of the action proxy: a person approves each request (evergrant approvals).
        expires: When it ends, with its zone: 2027-01-01T00:00:00Z.
    """
    named = {"connections": connection, "sources": source, "scopes" if deny else "scope_ceiling": scope}
    named |= {"methods": method, "paths": path, "tools": tool}
    with options.client() as client:
        made = client.put_permit(
            app,
            name,
            integration=integration,
            actions=action,
            effect="deny" if deny else "allow",
            mode="observe" if observe else "enforce",
            provider=provider,
            subjects=subject,
            exact_scopes=exact_scopes,
            call_approval=call_approval,
            expires_at=expires,
            purpose=purpose,
            owner=owner,
            reason=reason,
            **{field: values for field, values in named.items() if values},
        )
        show_one(row_of(made), options.output)


@permits.command(name=("rm", "delete"))
def delete(app: str, name: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete a permit of an app. It counts from the next request on."""
    with options.client() as client:
        client.delete_permit(app, name)
