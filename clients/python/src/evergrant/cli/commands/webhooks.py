"""`evergrant webhooks`: subscriptions to events, and the log of their deliveries."""

from datetime import timedelta

from cyclopts import App

from evergrant.api.models import Webhook
from evergrant.cli.arguments import Seconds
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Row, row_of, show_one, show_rows

_WEBHOOKS = ("name", "url", "integration", "events", "disabled_by", "failures", "failing_since")
_DELIVERIES = (
    *("id", "event_type", "status", "attempts"),
    *("response_status", "problem", "next_at", "created_at"),
)

webhooks = App(name="webhooks")


@webhooks.command(name=("ls", "list"))
def list_webhooks(*, options: Options = DEFAULTS) -> None:
    """List the webhooks of the tenant."""
    with options.client() as client:
        show_rows((_webhook_row(webhook) for webhook in client.webhooks()), _WEBHOOKS, options.output)


@webhooks.command(name="get")
def get_webhook(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one webhook and the state of its endpoint."""
    with options.client() as client:
        show_one(_webhook_row(client.webhook(name)), options.output)


@webhooks.command(name="put")
def put_webhook(
    name: str,
    url: str,
    /,
    *,
    event: tuple[str, ...] = (),
    integration: str | None = None,
    disabled: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Create or change a webhook. The signing secret is shown when it is created, and never again.

    Args:
        event: An event to subscribe to, such as connection.needs_reauth; may be repeated. By default all but
            connection.refreshed.
        integration: Only events of this integration.
    """
    with options.client() as client:
        made = client.put_webhook(name, url, events=event or None, integration=integration, disabled=disabled)
    show_one(_webhook_row(made), options.output)


@webhooks.command(name=("delete", "rm"))
def delete_webhook(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete a webhook with its log. Pending deliveries are dropped."""
    with options.client() as client:
        client.delete_webhook(name)


@webhooks.command(name="rotate")
def rotate_secret(name: str, /, *, overlap: Seconds | None = None, options: Options = DEFAULTS) -> None:
    """Make a new signing secret and show it, once.

    Args:
        overlap: Seconds in which messages carry both signatures; 0 for a secret that leaked.
    """
    overlap_time = None if overlap is None else timedelta(seconds=overlap)
    with options.client() as client:
        show_one(_webhook_row(client.rotate_webhook_secret(name, overlap=overlap_time)), options.output)


@webhooks.command
def deliveries(name: str, /, *, status: str | None = None, options: Options = DEFAULTS) -> None:
    """Show the log of deliveries, newest first.

    Args:
        status: Only those pending, delivered or failed.
    """
    with options.client() as client:
        log = client.webhook_deliveries(name, status=status)
        show_rows(log, _DELIVERIES, options.output)


@webhooks.command
def replay(name: str, delivery_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Send one delivery again."""
    with options.client() as client:
        show_one(client.replay_webhook(name, delivery_id), options.output)


@webhooks.command(name="test")
def send_ping(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Have a webhook.ping sent; `deliveries` shows the result."""
    with options.client() as client:
        show_one(client.test_webhook(name), options.output)


def _webhook_row(webhook: Webhook) -> Row:
    """Every member; the secret only in the answer that has it."""
    row = row_of(webhook)
    if webhook.secret is None:
        del row["secret"]
    return row
