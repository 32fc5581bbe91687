"""Keys that tokens are bound to: one per connection, sealed for `lease`, deleted with its grant."""

from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ProofKeyRow
from tests.conformance.store.samples import ACME, granted, refreshed, some_tokens
from tests.conformance.store.test_grants import columns_of
from tests.fakes.databases import NOW


async def test_a_key_is_made_once_and_outlives_refreshes(store: Store):
    connection = await granted(store)
    async with store.read() as tx:
        assert await tx.proof_keys.get(ACME, connection.id) is None
    async with store.write() as tx:
        made = await tx.proof_keys.get_or_create(ACME, connection.id, NOW)
    await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    async with store.write() as tx:
        assert await tx.proof_keys.get_or_create(ACME, connection.id, NOW) == made
    row = await columns_of(store, ProofKeyRow, connection_id=connection.id)
    assert row["thumbprint"] == made.thumbprint
    assert made.private.reveal().encode() not in row["sealed_key"]
