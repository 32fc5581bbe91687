"""`evergrant apps` and `evergrant approvals`: consumers, their API keys, and the second person."""

from datetime import timedelta

from cyclopts import App

from evergrant.calls.api_keys import ApiKey
from evergrant.cli.credentials import credentials
from evergrant.cli.output import DEFAULTS, Options, Row, row_of, show_one, show_rows

_KEYS = ("id", "live", "created_at", "expires_at", "revoked_at", "last_used_at")
_APPROVALS = ("id", "by", "command", "body", "expires_at", "approved_by")

apps = App(name="apps", help="Consumers of Evergrant, their API keys and credentials.")
keys = App(name="keys", help="API keys. Two of an app may be live: create the second, then revoke the first.")
apps.command(keys)
apps.command(credentials)
approvals = App(name="approvals", help="Commands that a second app must approve (EVERGRANT_FOUR_EYES).")


@apps.command(name=("ls", "list"))
def list_apps(*, options: Options = DEFAULTS) -> None:
    """List the apps of the tenant."""
    with options.client() as client:
        show_rows((row_of(app) for app in client.apps()), ("id", "name", "disabled"), options.output)


@keys.command(name=("ls", "list"))
def list_keys(app: str, /, *, options: Options = DEFAULTS) -> None:
    """List the keys of an app, with their expiry and last use."""
    with options.client() as client:
        show_rows((_key_row(key) for key in client.api_keys(app)), _KEYS, options.output)


@keys.command
def create(app: str, /, *, days: float | None = None, options: Options = DEFAULTS) -> None:
    """Create a key of an app and show it, once.

    Args:
        days: Days until it expires; by default as the server is set, usually 90.
    """
    lifetime = None if days is None else timedelta(days=days)
    with options.client() as client:
        show_one(_key_row(client.create_api_key(app, lifetime=lifetime)), options.output)


@keys.command
def revoke(app: str, key_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Revoke a key of an app. Requests with it are refused at once."""
    with options.client() as client:
        client.revoke_api_key(app, key_id)


@approvals.command(name=("ls", "list"))
def list_approvals(*, options: Options = DEFAULTS) -> None:
    """List the commands that wait for an approval, with their requests."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.approvals()), _APPROVALS, options.output)


@approvals.command
def give(approval_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Approve another app's command. That app may send it again, once."""
    with options.client() as client:
        show_one(row_of(client.approve(approval_id)), options.output)


def _key_row(key: ApiKey) -> Row:
    """Every member; the key itself only in the answer that has it."""
    row = row_of(key)
    if key.key is None:
        del row["key"]
    return row
