"""`evergrant access-requests`: an app asks for a permit, an admin decides."""

from datetime import timedelta

from cyclopts import App

from evergrant.calls.access_requests import AccessRequest
from evergrant.cli.given.values import Scopes
from evergrant.cli.output import DEFAULTS, Options, row_of
from evergrant.cli.show.tables import Row, show_one, show_rows

_REQUESTS = (
    *("id", "app", "kind", "state", "permit", "lifetime", "reason"),
    *("requested_by", "decide_by", "ends_at"),
)

access_requests = App(
    name="access-requests", help="Permits that apps ask for, or that are proposed for removal."
)


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
        show_rows((_row(it) for it in client.access_requests(state)), _REQUESTS, options.output)


@access_requests.command
def approve(
    request_id: str,
    /,
    *,
    hours: float | None = None,
    note: str | None = None,
    options: Options = DEFAULTS,
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
