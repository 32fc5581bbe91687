"""Deletes unused clients, and requests, sessions and consents of their people that are over."""

from datetime import datetime, timedelta

from evergrant_server.store import Store

_NEVER_USED, _UNUSED = timedelta(days=1), timedelta(days=180)
_CONSENT_UNUSED = timedelta(days=90)
_MAX_BATCHES = 50


async def prune_oauth_clients(store: Store, now: datetime) -> None:
    """Raises Failure STORE_UNAVAILABLE."""
    for _ in range(_MAX_BATCHES):
        async with store.write() as tx:
            gone = await tx.oauth_clients.prune_unused(now - _NEVER_USED, now - _UNUSED)
            gone += await tx.authorization_requests.prune(now)
            gone += await tx.subject_sessions.prune(now)
            if gone + await tx.client_consents.prune(now - _CONSENT_UNUSED) == 0:
                break
