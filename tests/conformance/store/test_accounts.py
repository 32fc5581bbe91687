"""Pins of accounts, on both databases."""

from evergrant_server.core.connections.account import Account, ConsentAccount, OnReconnect
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.connections.grant import Origin
from evergrant_server.store import Store
from tests.conformance.store.samples import a_connection, a_grant, added, some_tokens
from tests.fakes.databases import NOW

ANN, BOB = (Account(id=it, name=it, claims={"email": f"{it}@Example.org"}) for it in ("ann", "bob"))


async def installed(
    store: Store, connection: Connection, account: Account | None, origin: Origin
) -> Connection:
    after = connection.granted(NOW) if origin is Origin.NEW else connection.refreshed(NOW)
    tokens = some_tokens().model_copy(update={"account": account})
    grant = a_grant(after.generation)
    async with store.write() as tx:
        return await tx.grants.install(after, tokens, grant, origin=origin, expected=connection.revision)


async def pin(store: Store, connection: Connection) -> str | None:
    async with store.read() as tx:
        return await tx.account_identifiers.account_hash(connection)


async def sharing(store: Store, connection: Connection) -> list[str]:
    async with store.read() as tx:
        return list(await tx.account_identifiers.of_other_subjects(connection, ANN))


async def test_a_new_grant_moves_the_pin_and_a_refresh_sets_it_at_most(store: Store):
    one = await added(store, a_connection())
    one = await installed(store, one, None, Origin.NEW)
    assert await pin(store, one) is None
    one = await installed(store, one, ANN, Origin.REFRESH)
    anns = await pin(store, one)
    assert anns is not None
    assert "ann" not in anns
    for account in (BOB, None):
        one = await installed(store, one, account, Origin.REFRESH)
        assert await pin(store, one) == anns
    one = await installed(store, one, BOB, Origin.NEW)
    assert await pin(store, one) not in (None, anns)
    async with store.write() as tx:
        await tx.grants.shred(one.tenant, one.id)
    assert await pin(store, one) is None


async def test_an_account_is_found_under_other_subjects_while_they_are_connected(store: Store):
    one = await installed(store, await added(store, a_connection()), ANN, Origin.NEW)
    label = await added(store, a_connection(label="work"))
    await installed(store, label, ANN, Origin.NEW)
    other = await installed(store, await added(store, a_connection(subject="user-2")), ANN, Origin.NEW)
    await installed(store, await added(store, a_connection(subject="user-3")), BOB, Origin.NEW)
    assert await sharing(store, one) == [other.id]
    assert len(await sharing(store, other)) == 2
    ended = other.revocation_requested("left", NOW).revocation_ended(RevocationOutcome.CONFIRMED, NOW)
    async with store.write() as tx:
        await tx.connections.replace(ended, expected=other.revision)
    assert await sharing(store, one) == []


async def test_an_expectation_is_compared_by_its_hashes(store: Store):
    one = await added(store, a_connection())
    async with store.write() as tx:
        hashes = tx.account_identifiers.hash_claims(
            one.tenant, one.integration_id, {"email": "ANN@example.ORG"}
        )
        one = await tx.connections.replace(
            one.model_copy(update={"expected_account": hashes}), expected=one.revision
        )
    async with store.read() as tx:
        meant = [
            await tx.account_identifiers.is_expected(one, account, OnReconnect.SAME)
            for account in (ANN, BOB, None)
        ]
    assert meant == [True, False, False]
    assert ConsentAccount.from_secret(ConsentAccount(came="ann").as_secret()).came == "ann"
