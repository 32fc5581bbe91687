"""An admin's calls for webhooks: subscriptions to events, and the log of their deliveries.

`evergrant.webhooks` is for the receiver of the messages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    post,
    require_success,
    seconds_or_none,
    without_none,
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription to events. Only the answer that created it has the `secret`.

    `disabled_by` is `admin`, `gone` (the endpoint answered 410) or `failing` (for days).
    """

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    integration: str
    disabled: bool
    disabled_by: str | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    previous_secret_until: datetime | None
    created_at: datetime
    changed_at: datetime
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One event for one webhook. The receiver sees `event_id` as `webhook-id`."""

    id: str
    event_id: str
    event_type: str
    status: str
    attempts: int
    response_status: int | None
    problem: str | None
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


_WEBHOOK = object_parser("webhook", Webhook)
_WEBHOOKS = page_parser("webhook", Webhook)
_DELIVERY = object_parser("delivery", WebhookDelivery)
_DELIVERIES = page_parser("delivery", WebhookDelivery)


def webhooks() -> Call[Page[Webhook]]:
    """Every webhook of the tenant."""
    return Call("GET", "/v1/webhooks", _WEBHOOKS)


def webhook(name: str) -> Call[Webhook]:
    return Call("GET", path_of("webhooks", name), _WEBHOOK)


def put_webhook(
    name: str,
    url: str,
    *,
    events: Iterable[str] | None = None,
    integration: str | None = None,
    disabled: bool = False,
) -> Call[Webhook]:
    """Create or change a webhook; `events` None subscribes to all but `connection.refreshed`.

    Keep the `secret` of the answer that creates it: the server doesn't return it again. When that
    answer was lost, rotate the secret.
    """
    body = without_none(
        url=url, events=list(events) if events else None, integration=integration, disabled=disabled
    )
    return Call("PUT", path_of("webhooks", name), _WEBHOOK, body=body)


def delete_webhook(name: str) -> Call[None]:
    """Delete a webhook with its log. Pending deliveries are dropped."""
    return Call("DELETE", path_of("webhooks", name), require_success)


def rotate_webhook_secret(name: str, *, overlap: timedelta | None = None) -> Call[Webhook]:
    """Make a new `secret`. For `overlap` (None: the server's default) messages carry both signatures."""
    path = path_of("webhooks", name, "rotate-secret")
    return post(path, _WEBHOOK, without_none(overlap=seconds_or_none(overlap)))


def webhook_deliveries(name: str, *, status: str | None = None) -> Call[Page[WebhookDelivery]]:
    """The log of deliveries, newest first; `status` selects `pending`, `delivered` or `failed`."""
    path = path_of("webhooks", name, "deliveries")
    return Call("GET", path, _DELIVERIES, query=without_none(status=status))


def replay_webhook(name: str, delivery_id: str) -> Call[WebhookDelivery]:
    """Send one delivery again, under the same `webhook-id`."""
    return post(path_of("webhooks", name, "deliveries", delivery_id, "replay"), _DELIVERY, None)


def test_webhook(name: str) -> Call[WebhookDelivery]:
    """Have a `webhook.ping` sent; the log of deliveries shows the result."""
    return post(path_of("webhooks", name, "test"), _DELIVERY, None)
