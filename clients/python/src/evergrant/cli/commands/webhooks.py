"""`evergrant webhooks` and `streams`: receivers of events and of audit records, and what they were sent."""

from datetime import timedelta
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.cli.arguments import Seconds, header_of
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.cli.verbs import verb

_WEBHOOKS = (
    "name",
    "url",
    "integration",
    "events",
    "disabled_by",
    "failing_since",
    "problem",
    "failed_deliveries",
)
_DELIVERIES = (
    *("id", "event_type", "status", "attempts"),
    *("response_status", "problem", "next_at", "created_at"),
)
_STREAMS = ("name", "url", "format", "disabled", "unsent", "sent", "failures", "problem", "failing_since")

webhooks = App(name="webhooks")

verb(webhooks, "ls list", "webhooks", "List the webhooks of the tenant.", _WEBHOOKS)
verb(webhooks, "get", "webhook", "Show one webhook and the state of its endpoint.")
verb(
    webhooks, "delete rm", "delete_webhook", "Delete a webhook with its log. Pending deliveries are dropped."
)
verb(webhooks, "replay", "replay_webhook", "Send one delivery again.")
verb(webhooks, "replay-failed", "replay_failed_deliveries", "Send the deliveries again that were given up.")
verb(webhooks, "test", "test_webhook", "Have a webhook.ping sent; `deliveries` shows the result.")


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
    show_one(made, options.output)


@webhooks.command(name="rotate")
def rotate_secret(name: str, /, *, overlap: Seconds | None = None, options: Options = DEFAULTS) -> None:
    """Make a new signing secret and show it, once.

    Args:
        overlap: Seconds in which messages carry both signatures; 0 for a secret that leaked.
    """
    overlap_time = None if overlap is None else timedelta(seconds=overlap)
    with options.client() as client:
        show_one(client.rotate_webhook_secret(name, overlap=overlap_time), options.output)


@webhooks.command
def deliveries(name: str, /, *, status: str | None = None, options: Options = DEFAULTS) -> None:
    """Show the log of deliveries, newest first.

    Args:
        status: Only those pending, delivered or failed.
    """
    with options.client() as client:
        log = client.webhook_deliveries(name, status=status)
        show_rows(log, _DELIVERIES, options.output)


streams = App(name="streams")

verb(streams, "ls list", "audit_streams", "List the streams of the tenant's audit log.", _STREAMS)
verb(streams, "get", "audit_stream", "Show one stream, and how far it is.")
verb(streams, "delete rm", "delete_audit_stream", "Delete a stream: nothing is sent from then on.")
verb(streams, "rotate", "rotate_audit_stream_secret", "Make a new signing secret and show it, once.")


@streams.command(name="put")
def put_stream(
    name: str,
    url: str,
    /,
    *,
    format: str | None = None,
    header: Annotated[tuple[str, ...], Parameter(name=["--header", "-H"])] = (),
    begin: str | None = None,
    disabled: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Create or change a stream. The signing secret is shown when it is created, and never again.

    Args:
        format: cloudevents (the default), ocsf or otlp.
        header: NAME: VALUE, once for each; sent with every batch. Without any they stay as they are.
        begin: now (the default), or oldest: where a new stream begins.
    """
    headers = dict(header_of(line) for line in header)
    with options.client() as client:
        made = client.put_audit_stream(
            name, url, format=format, headers=headers or None, begin=begin, disabled=disabled
        )
    show_one(made, options.output)
