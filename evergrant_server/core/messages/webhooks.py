"""What crosses Temporal about deliveries to webhooks. No secrets, and no URL: some hold one."""

from datetime import datetime

from evergrant_server.core.ids import Tenant, WebhookId
from evergrant_server.core.messages.base import Message, RequestContext


class WebhookStart(Message):
    """The input of the run that delivers to one webhook. What is delivered, and where, is in the store."""

    tenant: Tenant
    webhook_id: WebhookId


class WakeWebhook(WebhookStart):
    """A delivery waits. `at_once`: an admin wants it, even during a pause."""

    at_once: bool = False
    context: RequestContext


class DeliverWebhooks(WebhookStart):
    """Send what is due, a bounded number of it."""


class DeliveryRound(Message):
    """The result of a round. `next_at` None: no delivery waits; `paused`: none is sent until then."""

    delivered: int = 0
    failed: int = 0
    next_at: datetime | None = None
    paused: bool = False
    wait_s: float | None = None  # until `next_at`, by the clock that it is from: Temporal's is another
