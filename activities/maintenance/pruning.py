"""Deletes rows whose time is over: old secrets, delivered messages, old deliveries and responses.

Every function uses bounded transactions and a bounded number of them; the next pass continues.
"""

from datetime import datetime, timedelta

from evergrant_server.core.clock import Clock
from evergrant_server.store import Store

_DELIVERED_AGE = timedelta(days=7)  # delivered outbox messages, which help an operator in a diagnosis
_IDEMPOTENCY_AGE = timedelta(days=1)  # responses to `Idempotency-Key`, which may show a key or a link
_MAX_BATCHES = 50


async def prune_store(store: Store, clock: Clock, deliveries_age: timedelta) -> None:
    """Delete everything that is over its age. Raises Failure STORE_UNAVAILABLE."""
    now = clock.now()
    async with store.write() as tx:  # client secrets whose overlap has ended
        await tx.integrations.delete_expired_previous_secrets(now)
    for _ in range(_MAX_BATCHES):
        async with store.write() as tx:
            if await tx.outbox.prune(now - _DELIVERED_AGE) == 0:
                break
    await _prune_deliveries(store, now - deliveries_age)
    for _ in range(_MAX_BATCHES):
        async with store.write() as tx:
            if await tx.idempotency.prune(now - _IDEMPOTENCY_AGE) == 0:
                break


async def _prune_deliveries(store: Store, before: datetime) -> None:
    """Delete old deliveries of webhooks whose workflow no longer wakes to do so itself."""
    async with store.read() as tx:
        webhooks = await tx.deliveries.webhooks_with_deliveries_before(before)
    for tenant, webhook in webhooks:
        async with store.write() as tx:
            await tx.deliveries.prune(tenant, webhook, before)
