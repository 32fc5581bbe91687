"""What `/v1/webhooks` takes and shows. The signing secret is in one view, made for it."""

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from evergrant_server.api.http.requests import Body, Slug
from evergrant_server.api.http.responses import View
from evergrant_server.core.events import DEFAULT_EVENTS, EventType
from evergrant_server.core.webhooks import ANY_INTEGRATION, Delivery, DeliveryStatus, DisabledBy, Webhook

_MAX_OVERLAP_S = 30 * 86_400


def _endpoint(value: str) -> str:
    """An absolute URL with nothing in it that programs read differently. Where it may lead: the guard."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not value.isascii() or not value.isprintable() or set(value) & set(' \\<>"'):
        raise ValueError("has a character that a URL can't have")
    if not host or "@" in url.netloc or "#" in value:
        raise ValueError("needs a host, and no user name or fragment")
    return value


def _events(value: tuple[EventType, ...]) -> tuple[EventType, ...]:
    if EventType.PING in value:
        raise ValueError("webhook.ping is sent when it is asked for; nobody subscribes to it")
    return tuple(dict.fromkeys(value))


class WebhookBody(Body):
    """Where events go. `connection.refreshed` is sent to those alone who name it."""

    url: Annotated[str, Field(max_length=2000), AfterValidator(_endpoint)]
    events: Annotated[tuple[EventType, ...], Field(min_length=1, max_length=50), AfterValidator(_events)] = (
        DEFAULT_EVENTS
    )
    integration: Literal["*"] | Slug = ANY_INTEGRATION
    disabled: bool = False


class RotateWebhookBody(Body):
    """`overlap` is seconds in which both secrets sign; 0 ends the old one at once, for when it leaked."""

    overlap: float | None = Field(default=None, ge=0, le=_MAX_OVERLAP_S, allow_inf_nan=False)


class WebhookView(View):
    """`failures` counts tries that failed in a row; `paused_until` is when the next one goes out."""

    id: str
    name: str
    url: str
    events: tuple[EventType, ...]
    integration: str
    disabled: bool
    disabled_by: DisabledBy | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    secret_changed_at: datetime
    previous_secret_until: datetime | None
    created_at: datetime
    changed_at: datetime
    revision: int

    @classmethod
    def of(cls, webhook: Webhook) -> "WebhookView":
        return cls(**webhook.model_dump(exclude={"tenant"}), disabled=webhook.disabled)


class WebhookSecretView(WebhookView):
    """The answer that shows a signing secret: once, when it was made. Null when nothing was made."""

    secret: str | None

    @classmethod
    def with_secret(cls, webhook: Webhook, secret: str | None) -> "WebhookSecretView":
        return cls(**webhook.model_dump(exclude={"tenant"}), disabled=webhook.disabled, secret=secret)


class DeliveryView(View):
    """One event on its way. `event_id` is what the receiver sees as `webhook-id`."""

    id: str
    event_id: str
    event_type: EventType
    status: DeliveryStatus
    attempts: int
    response_status: int | None
    problem: str | None
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery) -> "DeliveryView":
        hidden = {"tenant", "webhook_id", "by_hand", "tries", "revision"}
        return cls(**delivery.model_dump(exclude=hidden))
