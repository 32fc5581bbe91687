"""Keys that tokens are bound to: one per connection, sealed for `lease`, deleted with its grant."""

from pathlib import Path

from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ProofKeyRow
from tests.conformance.store.samples import ACME, granted, refreshed, some_tokens
from tests.conformance.store.test_grants import columns_of
from tests.fakes.clock import SetClock
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


async def test_who_hands_out_the_token_can_make_its_proofs(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    connection = await granted(store)
    async with store.write() as tx:
        made = await tx.proof_keys.get_or_create(ACME, connection.id, NOW)
    api = await Store.open(database_url, KeyRing.open(key_path, Role.API), clock)
    try:
        async with api.read() as tx:
            assert await tx.proof_keys.get(ACME, connection.id) == made
    finally:
        await api.close()


async def test_shredding_takes_the_key_along(store: Store):
    connection = await granted(store)
    async with store.write() as tx:
        await tx.proof_keys.get_or_create(ACME, connection.id, NOW)
    async with store.write() as tx:
        await tx.grants.shred(ACME, connection.id)
    async with store.read() as tx:
        assert await tx.proof_keys.get(ACME, connection.id) is None
