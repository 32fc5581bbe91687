"""Deliveries whose workflow is gone: ended by hand, or lost with Temporal's database."""

from datetime import timedelta

from evergrant_server.core.clock import Clock
from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.core.messages.webhooks import WakeWebhook
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink

_BY = RequestContext(by="reconcile")
_OVERDUE_AFTER = timedelta(minutes=2)  # a round, and then some


async def wake_overdue_webhooks(store: Store, link: TemporalLink, clock: Clock) -> int:
    """Wake the workflow of every webhook whose deliveries are late, or start it; says how many.

    One that only is slow is woken too, which costs it one look. Raises Failure
    TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        late = await tx.webhooks.with_overdue_deliveries(clock.now() - _OVERDUE_AFTER)
    for webhook in late:
        await link.wake_webhook(WakeWebhook(tenant=webhook.tenant, webhook_id=webhook.id, context=_BY))
    return len(late)
