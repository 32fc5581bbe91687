"""Request and response bodies of `/v1/webhooks`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from evergrant_server.api.http.models import Body, Slug, View, absolute_url
from evergrant_server.core.events import DEFAULT_EVENTS, EventType
from evergrant_server.core.webhooks import ANY_INTEGRATION, DeliveryStatus, DisabledBy

_MAX_OVERLAP_S = 30 * 86_400


def _events(value: tuple[EventType, ...]) -> tuple[EventType, ...]:
    if EventType.PING in value:
        raise ValueError("webhook.ping can't be subscribed to: POST /v1/webhooks/{name}/test sends it")
    return tuple(dict.fromkeys(value))


class WebhookBody(Body):
    """A subscription. `connection.refreshed` is not among the default `events`."""

    # the egress policy checks its host
    url: Annotated[str, Field(max_length=2000), AfterValidator(absolute_url)]
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


class WebhookSecretView(WebhookView):
    """`secret` is set only in the response that created it."""

    secret: str | None


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
