"""`evergrant permits` and `evergrant access-requests`: what apps may do, and what they ask for."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from cyclopts import App, Parameter

from evergrant.api.models import AccessRequest
from evergrant.cli.arguments import Scopes
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Row, row_of, show_one, show_rows
from evergrant.cli.verbs import verb

_PERMITS = (
    *("name", "effect", "mode", "integration", "provider", "subjects", "actions"),
    *("scope_ceiling", "expires_at", "owner"),
)

USUAL = {"effect": "allow", "mode": "enforce", "provider": "*", "app_disabled": False, "authentic": True}

permits = App(name="permits")

verb(permits, "ls list", "permits", "List the permits of an app.", _PERMITS, usual=USUAL)
verb(permits, "get", "permit", "Show one permit of an app.")
verb(permits, "rm delete", "delete_permit", "Delete a permit of an app. It counts from the next request on.")


Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Permit:
    """The options of `put`: whom a permit allows what, and until when."""

    integration: str
    "Its name, or * for every one."
    action: tuple[str, ...]
    "token, connect, admin, audit, stories, directory, export or proxy."
    deny: Flag = False
    "Refuse what fits, instead of allowing it."
    observe: Flag = False
    "Of a deny: refuse nothing, and have it recorded what it would refuse."
    provider: str = "*"
    "Its name, or * for every one."
    subject: tuple[str, ...] = ("*",)
    "An exact subject; one that ends in * stands for all that begin so. All by default."
    connection: tuple[str, ...] = ()
    "The id of a connection. Any by default."
    source: tuple[str, ...] = ()
    "A network that the app calls from, 10.1.0.0/16. Any by default."
    scope: Scopes = ()
    "A scope that a token may have, or that a deny refuses. Any by default."
    method: tuple[str, ...] = ()
    "Of the action proxy: a method of requests to the provider's API. Any by default."
    path: tuple[str, ...] = ()
    """The same of a path: /repos/*/issues, /contacts/**. Any by default. A deny is best effort: an API may
    know a path by other names. Rather allow what is needed."""
    tool: tuple[str, ...] = ()
    "Of the action proxy: a tool of an MCP server; search_* for all that begin so. Any by default."
    exact_scopes: Flag = False
    "Refuse a lease whose token can do more than it requests."
    call_approval: Flag = False
    "Of the action proxy: a person approves each request (evergrant approvals)."
    priority: Literal["low", "normal", "high"] = "normal"
    "Of the action proxy: how large the app's part is where a provider's API takes no more calls."
    expires: datetime | None = None
    "When it ends, with its zone: 2027-01-01T00:00:00Z."
    purpose: str = ""
    owner: str = ""
    reason: str = ""

    @property
    def limits(self) -> dict[str, tuple[str, ...]]:
        """What the permit is limited to, by the API's members."""
        scopes = "scopes" if self.deny else "scope_ceiling"
        limits = {"connections": self.connection, "sources": self.source, scopes: self.scope}
        limits |= {"methods": self.method, "paths": self.path, "tools": self.tool}
        return {member: values for member, values in limits.items() if values}


@permits.command
def put(app: str, name: str, /, *, permit: Permit, options: Options = DEFAULTS) -> None:
    """Create a permit, or replace all of one. What may be given several times: action to tool."""
    with options.client() as client:
        made = client.put_permit(
            app,
            name,
            integration=permit.integration,
            actions=permit.action,
            effect="deny" if permit.deny else "allow",
            mode="observe" if permit.observe else "enforce",
            provider=permit.provider,
            subjects=permit.subject,
            exact_scopes=permit.exact_scopes,
            call_approval=permit.call_approval or None,
            priority=None if permit.priority == "normal" else permit.priority,
            expires_at=permit.expires,
            purpose=permit.purpose,
            owner=permit.owner,
            reason=permit.reason,
            **permit.limits,
        )
        show_one(made, options.output)


_REQUESTS = (
    *("id", "app", "kind", "state", "permit", "lifetime", "reason"),
    *("requested_by", "decide_by", "ends_at"),
)

access_requests = App(name="access-requests")


@access_requests.command
def new(
    integration: str,
    /,
    *actions: str,
    reason: str,
    subject: tuple[str, ...] = (),
    scope: Scopes = (),
    app: str | None = None,
    hours: float | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Ask an admin for a permit: for this app, or for another one if this app is an admin.

    Args:
        integration: Its name, or * for every one.
        actions: token, connect, proxy, audit, admin or export. By default token.
        reason: Why; the admin reads it.
        subject: Whose connections, once for each. By default everyone's.
        scope: The scope ceiling, once for each. By default every scope.
        app: The app that gets the access.
        hours: How long it lasts from the approval. By default until an admin removes it.
    """
    permit: dict[str, object] = {"integration": integration, "actions": list(actions or ("token",))}
    if subject:
        permit["subjects"] = list(subject)
    if scope:
        permit["scope_ceiling"] = list(scope)
    lifetime = None if hours is None else timedelta(hours=hours)
    with options.client() as client:
        made = client.request_access(permit, reason=reason, app=app, lifetime=lifetime)
    show_one(_row(made), options.output)


@access_requests.command(name=("ls", "list"))
def list_requests(*, state: str | None = None, options: Options = DEFAULTS) -> None:
    """List requests for access: all of them for an admin, else this app's own.

    Args:
        state: waiting, approved, denied, withdrawn, expired or ended.
    """
    with options.client() as client:
        show_rows(
            (_row(request) for request in client.access_requests(state=state)), _REQUESTS, options.output
        )


@access_requests.command
def approve(
    request_id: str, /, *, hours: float | None = None, note: str | None = None, options: Options = DEFAULTS
) -> None:
    """Give the access that was asked for, or remove the permit that is proposed for removal.

    Args:
        hours: How long it lasts from now, instead of what was asked for.
        note: A word for the app.
    """
    lifetime = None if hours is None else timedelta(hours=hours)
    with options.client() as client:
        show_one(_row(client.approve_access(request_id, lifetime=lifetime, note=note)), options.output)


@access_requests.command
def deny(request_id: str, /, *, note: str | None = None, options: Options = DEFAULTS) -> None:
    """Refuse what was asked for, or keep the permit that is proposed for removal."""
    with options.client() as client:
        show_one(_row(client.deny_access(request_id, note=note)), options.output)


@access_requests.command
def withdraw(request_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Take back a request that waits."""
    with options.client() as client:
        show_one(_row(client.withdraw_access_request(request_id)), options.output)


def _row(request: AccessRequest) -> Row:
    return {name: value for name, value in row_of(request).items() if value is not None}
