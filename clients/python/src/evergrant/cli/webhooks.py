"""`evergrant webhooks`: where events go, and what became of them."""

from dataclasses import asdict
from datetime import datetime, timedelta

from cyclopts import App

from evergrant.cli.options import DEFAULT_OPTIONS, Options
from evergrant.cli.output import Row, show_one, show_rows
from evergrant.webhook_calls import Webhook, WebhookDelivery

_WEBHOOKS = ("name", "url", "integration", "events", "disabled_by", "failures", "failing_since")
_DELIVERIES = (
    "id",
    "event_type",
    "status",
    "attempts",
    "response_status",
    "problem",
    "next_at",
    "created_at",
)


def list_webhooks(*, options: Options = DEFAULT_OPTIONS) -> None:
    """List the webhooks of the tenant."""
    with options.client() as client:
        show_rows((_row(it) for it in client.webhooks()), _WEBHOOKS, options.output)


def get_webhook(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Show one webhook, and how its endpoint does."""
    with options.client() as client:
        show_one(_row(client.webhook(name)), options.output)


def put_webhook(
    name: str,
    url: str,
    /,
    *,
    event: tuple[str, ...] = (),
    integration: str | None = None,
    disabled: bool = False,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Create or change a webhook. The signing secret is shown when it is created, and never again.

    Parameters
    ----------
    event
        An event to be told of, such as connection.needs_reauth; more with more of these.
        Without any: all but connection.refreshed.
    integration
        Only what happens at this integration.
    """
    with options.client() as client:
        made = client.put_webhook(name, url, events=event or None, integration=integration, disabled=disabled)
    show_one(_row(made), options.output)


def delete_webhook(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Delete a webhook with its log; what waits is not delivered any more."""
    with options.client() as client:
        client.delete_webhook(name)


def rotate_secret(name: str, /, *, overlap: float | None = None, options: Options = DEFAULT_OPTIONS) -> None:
    """Make a new signing secret and show it, once.

    Parameters
    ----------
    overlap
        Seconds in which messages carry both signatures; 0 for a secret that leaked.
    """
    kept = None if overlap is None else timedelta(seconds=overlap)
    with options.client() as client:
        show_one(_row(client.rotate_webhook_secret(name, overlap=kept)), options.output)


def deliveries(name: str, /, *, status: str | None = None, options: Options = DEFAULT_OPTIONS) -> None:
    """Show what was sent and what came of it, newest first.

    Parameters
    ----------
    status
        Only those pending, delivered or failed.
    """
    with options.client() as client:
        found = client.webhook_deliveries(name, status=status)
        show_rows((_row(it) for it in found), _DELIVERIES, options.output)


def replay(name: str, delivery_id: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Send one delivery again."""
    with options.client() as client:
        show_one(_row(client.replay_webhook(name, delivery_id)), options.output)


def send_ping(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Have a webhook.ping sent; `deliveries` says what came of it."""
    with options.client() as client:
        show_one(_row(client.test_webhook(name)), options.output)


def webhooks_app() -> App:
    app = App(name="webhooks", help="Where events go, and what became of them.")
    app.command(list_webhooks, name=("ls", "list"))
    app.command(get_webhook, name="get")
    app.command(put_webhook, name="put")
    app.command(delete_webhook, name="delete")
    app.command(rotate_secret, name="rotate")
    app.command(deliveries)
    app.command(replay)
    app.command(send_ping, name="test")
    return app


def _row(it: Webhook | WebhookDelivery) -> Row:
    """Its members, times as text; a secret only where there is one to show."""
    members: dict[str, object] = asdict(it)
    if members.get("secret", "") is None:
        del members["secret"]
    return {name: _plain(value) for name, value in members.items()}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # a tuple of text
