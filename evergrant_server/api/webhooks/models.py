"""Request and response bodies of `/v1/webhooks`."""

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
    """An absolute URL that all parsers read alike. The egress policy checks its host."""
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
        raise ValueError("webhook.ping can't be subscribed to: POST /v1/webhooks/{name}/test sends it")
    return tuple(dict.fromkeys(value))


class WebhookBody(Body):
    """A subscription. `connection.refreshed` is not among the default `events`."""

    url: Annotated[str, Field(max_length=2000), AfterValidator(_endpoint)]
    events: Annotated[tuple[EventType, ...], Field(min_length=1, max_length=50), AfterValidator(_events)] = (
        DEFAULT_EVENTS
    )
    integration: Literal["*"] | Slug = ANY_INTEGRATION
    disabled: bool = False


class RotateWebhookBody(Body):
    """`overlap` is the time in seconds in which both secrets sign; 0 ends the previous one at once."""

    overlap: float | None = Field(default=None, ge=0, le=_MAX_OVERLAP_S, allow_inf_nan=False)


class WebhookView(View):
    """`failures` counts consecutive failed attempts; `paused_until` is the time of the next one."""

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
    """`secret` is set only in the response that created it."""

    secret: str | None

    @classmethod
    def with_secret(cls, webhook: Webhook, secret: str | None) -> "WebhookSecretView":
        return cls(**webhook.model_dump(exclude={"tenant"}), disabled=webhook.disabled, secret=secret)


class DeliveryView(View):
    """The delivery of one event. `event_id` is the `webhook-id` that the receiver gets."""

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
