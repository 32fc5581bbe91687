"""Tokens that a connection holds only to revoke them."""

from datetime import timedelta

from sqlalchemy import update

from evergrant_server.core.connections.account import Account
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.connections.replaced import ReplacedGrant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ReplacedGrantId, new_id
from evergrant_server.store import Store
from evergrant_server.store.connections.replaced_grants import ReplacedGrantRow
from evergrant_server.store.database.rows import columns_equal, find_one
from tests.conformance.store.samples import ACME, a_connection, a_grant, added, granted, some_tokens
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


def a_replaced_grant(connection: Connection, *, pending: bool) -> ReplacedGrant:
    return ReplacedGrant(
        tenant=ACME,
        id=ReplacedGrantId(new_id("rpl")),
        connection_id=connection.id,
        integration_id=connection.integration_id,
        generation=1,
        pending=pending,
        replaced_at=NOW,
    )


async def test_its_tokens_are_sealed_and_go_with_their_connection(store: Store):
    connection = await granted(store)
    first, second = (a_replaced_grant(connection, pending=it) for it in (True, False))
    async with store.write() as tx:
        await tx.replaced_grants.add(first, some_tokens("at-0", "rt-0"))
        await tx.replaced_grants.add(second, some_tokens("at-9", None))
    async with store.read() as tx:
        assert {it.id for it in await tx.replaced_grants.of_connection(ACME, connection.id)} == {
            first.id,
            second.id,
        }
        assert (await tx.replaced_grants.tokens(first)) == some_tokens("at-0", "rt-0")
        (pending,) = await tx.replaced_grants.pending_since_before(NOW + timedelta(seconds=1))
        assert pending == (ACME, connection.id, connection.integration, NOW)
        assert await tx.replaced_grants.pending_since_before(NOW) == []
    async with store.write() as tx:  # the tokens of another row
        mine = columns_equal(ReplacedGrantRow, tenant=ACME, id=first.id)
        row = await find_one(tx.connection, ReplacedGrantRow, tenant=ACME, id=second.id)
        assert row is not None
        await tx.connection.execute(
            update(ReplacedGrantRow).where(mine).values(sealed_tokens=row["sealed_tokens"])
        )
        with fails(ErrorCode.SEAL_BROKEN):
            await tx.replaced_grants.tokens(first)
    async with store.write() as tx:
        await tx.grants.shred(ACME, connection.id)
    async with store.read() as tx:
        assert await tx.replaced_grants.of_connection(ACME, connection.id) == []


async def test_an_account_is_shared_while_another_live_connection_has_it(store: Store):
    one, other = [await added(store, a_connection(subject=subject)) for subject in ("user-1", "user-2")]
    for connection in (one, other):
        account = Account(id="account-1", name="")
        after, tokens = connection.granted(NOW), some_tokens().model_copy(update={"account": account})
        async with store.write() as tx:
            await tx.grants.install(
                after, tokens, a_grant(1), origin=Origin.NEW, expected=connection.revision
            )
    async with store.read() as tx:
        hashed = await tx.account_identifiers.account_hash(one)
        assert hashed is not None
        assert await tx.account_identifiers.account_hash(other) == hashed
        here = (ACME, one.integration_id, hashed, one.id)
        assert await tx.account_identifiers.is_shared(*here)
    async with store.write() as tx:
        row = await tx.connections.get(ACME, other.id)
        assert row is not None
        ended = row.revocation_requested("left", NOW).revocation_ended(RevocationOutcome.CONFIRMED, NOW)
        await tx.connections.replace(ended, expected=row.revision)
    async with store.read() as tx:
        assert not await tx.account_identifiers.is_shared(*here)
