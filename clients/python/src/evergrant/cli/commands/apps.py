"""`evergrant apps` and `evergrant approvals`: consumers, their API keys, and the second person."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from evergrant.api.methods import Texts
from evergrant.api.models import ApiKey, Permit
from evergrant.api.models import App as Consumer
from evergrant.cli.arguments import Days, Scopes
from evergrant.cli.commands.credentials import credentials
from evergrant.cli.options import DEFAULTS, Options, if_there, note_missing_integration
from evergrant.cli.tables import row_of, show_one
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest
from evergrant.grant_files import write_private_file
from evergrant.sync_client import Evergrant

_APPS = ("name", "disabled", "sponsor", "return_to", "lease_limit", "created_at", "id")
_KEYS = ("id", "live", "created_at", "expires_at", "revoked_at", "last_used_at")
FIRST_ACTIONS = ("token", "connect")

apps = App(name="apps")
keys = App(name="keys", help="API keys. Two of an app may be live: create the second, then revoke the first.")
apps.command(keys)
apps.command(credentials)

verb(apps, "ls list", "apps", "List the apps of the tenant.", _APPS, usual={"disabled": False})
verb(apps, "get", "app", "Show one app.")
verb(
    apps,
    "rm delete",
    "delete_app",
    "Delete an app with its keys and permits. Connections stay: other apps may use them.",
)

verb(keys, "ls list", "api_keys", "List the keys of an app, with their expiry and last use.", _KEYS)
verb(keys, "revoke", "revoke_api_key", "Revoke a key of an app. Requests with it are refused at once.")


@apps.command(name="put")
def put_app(
    app: str,
    /,
    *,
    return_to: tuple[str, ...] | None = None,
    lease_limit: int | None = None,
    disabled: bool | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Create an app, or change one. What is left out stays as it is.

    Args:
        return_to: Where a browser may come back to after a consent; may be repeated. For evergrant connect
            on the subject's machine: http://127.0.0.1/, where any port matches.
        lease_limit: Leases in a minute; 0 takes the server's own limit.
        disabled: Refuse every request of the app.
    """
    with options.client() as client:
        made = change_app(client, app, return_to=return_to, lease_limit=lease_limit, disabled=disabled)
        show_one(made, options.output)


def change_app(
    client: Evergrant,
    app: str,
    *,
    return_to: tuple[str, ...] | None = None,
    lease_limit: int | None = None,
    disabled: bool | None = None,
) -> Consumer:
    """Create an app, or change one; what is None stays as it is. Raises EvergrantError."""
    now = if_there(client.app, app)
    if now is None:
        return client.put_app(
            app, return_to=return_to or (), lease_limit=lease_limit or None, disabled=bool(disabled)
        )
    limit = now.lease_limit if lease_limit is None else lease_limit or None
    return client.put_app(
        app,
        return_to=now.return_to if return_to is None else return_to,
        lease_limit=limit,
        disabled=now.disabled if disabled is None else disabled,
    )


@apps.command(name="permit")
def permit_app(
    app: str,
    integration: str,
    /,
    *,
    subject: tuple[str, ...],
    action: tuple[str, ...] = (),
    scope: Scopes = (),
    name: str | None = None,
    replace: Annotated[bool, Parameter(negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Let an app connect subjects at an integration, and lease their tokens. `permits put` knows more.

    A permit of this name keeps its subjects, and gets these too.

    Args:
        integration: Its name, or * for every one.
        subject: An exact subject; one that ends in * stands for all that begin so. May be repeated.
        action: token, connect, admin, audit, stories, export or proxy; may be repeated. By default token and
            connect, or those of the permit that is there.
        scope: A scope that a token may have; may be repeated. Any by default.
        name: The permit's name; by default the integration's.
        replace: Put this in the place of the permit of this name: what that allowed besides is lost.
    """
    name = name or ("all" if integration == "*" else integration)
    with options.client() as client:
        permit = None if replace else if_there(client.permit, app, name)
        if permit is None:
            actions, ceiling = action or FIRST_ACTIONS, scope or None
            made = client.put_permit(app, name, integration, actions, subjects=subject, scope_ceiling=ceiling)
        else:
            _require_widening(app, permit, integration, subject, action, scope)
            made = put_widened(client, app, permit, subject, action)
        note_missing_integration(client, integration)
        show_one(made, options.output)


def _require_widening(
    app: str, permit: Permit, integration: str, subject: Texts, action: Texts, scope: Texts
) -> None:
    """Raise BadRequest unless only subjects are added to the permit, or only actions: with both, subjects
    that are there would be allowed more than was asked for."""
    actions_stay = not action or set(action) == set(permit.actions)
    subjects_stay = set(subject) == set(permit.subjects)
    scopes_stay = not scope or set(scope) == set(permit.scope_ceiling or ())
    same = permit.effect == "allow" and permit.integration == integration and scopes_stay
    if same and (actions_stay or subjects_stay):
        return
    limits = f" with {' '.join(permit.scope_ceiling)}" if permit.scope_ceiling else ""
    why = (
        f"{app} has a permit {permit.name} already: {permit.effect} {' '.join(permit.actions)} at "
        f"{permit.integration} for {' '.join(permit.subjects)}{limits}"
    )
    repair = "Give this one another name: --name. In its place, which loses what it allows: --replace."
    raise BadRequest(why, code="already_exists", repair=repair)


def put_widened(client: Evergrant, app: str, permit: Permit, subjects: Texts, actions: Texts) -> Permit:
    """Put a permit with these subjects and actions beside its own; the rest of it stays as it is."""
    stays: dict[str, Any] = {
        member: value
        for member, value in row_of(permit).items()
        if member not in ("id", "name", "created_at", "revision") and value is not None
    }
    stays |= {"expires_at": permit.expires_at, "integration": permit.integration}
    stays["actions"] = tuple(dict.fromkeys((*permit.actions, *actions)))
    stays["subjects"] = (
        permit.subjects if "*" in permit.subjects else tuple(dict.fromkeys((*permit.subjects, *subjects)))
    )
    return client.put_permit(app, permit.name, **stays)


@apps.command(name="key")
def write_key(
    app: str, /, *, out: Path | None = None, days: Days | None = None, options: Options = DEFAULTS
) -> None:
    """Create a key of an app in a new file that only you can read. It is not printed.

    Args:
        out: The file; by default APP.key in this folder.
        days: Days until it expires; by default as the server is set, usually 90.
    """
    with options.client() as client:
        path, made = key_in_file(client, app, out or Path(f"{app}.key"), days)
    show_one({**row_of(made), "key": f"in {path}"}, options.output)


def key_in_file(client: Evergrant, app: str, path: Path, days: float | None = None) -> tuple[Path, ApiKey]:
    """A new key of an app in a new file, which comes first: no key is lost. Raises EvergrantError."""
    write_private_file(path, "")
    try:
        made = client.create_api_key(app, lifetime=None if days is None else timedelta(days=days))
        path.write_text(f"{made.key}\n", encoding="ascii")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, made


@keys.command
def create(app: str, /, *, days: Days | None = None, options: Options = DEFAULTS) -> None:
    """Create a key of an app and show it, once.

    Args:
        days: Days until it expires; by default as the server is set, usually 90.
    """
    lifetime = None if days is None else timedelta(days=days)
    with options.client() as client:
        show_one(client.create_api_key(app, lifetime=lifetime), options.output)
