"""Deletes codes, families and tokens of the gateways' clients that are over their age."""

from datetime import datetime, timedelta

from evergrant_server.store import Store

_MAX_BATCHES = 20
_ENDED = timedelta(days=30)  # until a family is forgotten that has ended
_SPENT = timedelta(days=1)  # until codes and access tokens are


async def prune_authorizations(store: Store, now: datetime) -> None:
    """Raises Failure STORE_UNAVAILABLE."""
    for _ in range(_MAX_BATCHES):
        async with store.write() as tx:
            gone = await tx.authorization_codes.prune(now - _SPENT)
            gone += await tx.oauth_tokens.prune(now - _SPENT)
            if gone + await tx.token_families.prune(now - _ENDED) == 0:
                break
