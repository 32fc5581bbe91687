"""Restarts workflows of webhooks and definitions that were terminated, or lost with Temporal's database.

Workflows of connections are started by `reconcile` and `drift_repair`.
"""

from datetime import timedelta

from evergrant_server.core.clock import Clock
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.definition_rollout import RolloutStart
from evergrant_server.core.messages.webhooks import WakeWebhook
from evergrant_server.store import Store
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.link import TemporalLink

_CONTEXT = RequestContext(by="reconcile")
_OVERDUE_AFTER = timedelta(minutes=2)  # longer than a round of deliveries


async def wake_overdue_webhooks(store: Store, link: TemporalLink, clock: Clock) -> None:
    """Wake or start the workflow of every webhook whose deliveries are overdue.

    A workflow that is only slow is woken too, which costs it one query of the store. Raises
    Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        overdue = await tx.webhooks.with_overdue_deliveries(clock.now() - _OVERDUE_AFTER)
    for webhook in overdue:
        wake = WakeWebhook(tenant=webhook.tenant, webhook_id=webhook.id, context=_CONTEXT)
        await link.start(start_requests.webhook(wake))


async def restart_definition_rollouts(store: Store, link: TemporalLink) -> None:
    """Start the workflow of every open version of a definition, unless it is running.

    The workflow continues from the stage in the store. Raises Failure TEMPORAL_UNAVAILABLE or
    STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        versions = await tx.definitions.open_versions_of_all_tenants()
    for version in versions:
        start = RolloutStart(
            tenant=version.tenant,
            definition_id=version.id,
            provider=version.name,
            check_interval_s=version.rollout.check_interval_s,
            context=_CONTEXT,
        )
        await link.start(start_requests.definition_rollout(start))
