"""Grants: installed whole, sealed under keys of their purposes, opened in their own place alone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose, KeyRing, Role
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.columns import METADATA, Row
from evergrant_server.store.keys import KeyRow
from tests.conformance.store.samples import (
    ACME,
    a_connection,
    a_grant,
    added,
    granted,
    refreshed,
    some_tokens,
)
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def columns_of(store: Store, table: type[Row], **equal: Any) -> dict[str, Any]:
    async with store.read() as tx:
        query = select(table).filter_by(**equal)
        return dict((await tx.connection.execute(query)).mappings().one())


async def tamper(store: Store, table: type[Row], values: dict[str, Any], **equal: Any) -> None:
    """Change a row as an attacker with the database's password would."""
    async with store.write() as tx:
        await tx.connection.execute(update(table).filter_by(**equal).values(values))


async def grant_row(store: Store, connection: Connection) -> dict[str, Any]:
    return await columns_of(store, ConnectionGrantRow, connection_id=connection.id)


async def tamper_grant(store: Store, connection: Connection, **values: Any) -> None:
    await tamper(store, ConnectionGrantRow, values, connection_id=connection.id)


async def lease(store: Store, connection: Connection, ring: KeyRing) -> Secret:
    row = await LeaseRows(store).load(ACME, connection.id)
    assert row is not None
    return row.open_access_token(ring)


async def refusal(store: Store, connection: Connection, column: str = "access_token") -> Failure:
    with pytest.raises(Failure) as caught:
        async with store.read() as tx:
            await getattr(tx.grants, column)(connection)
    return caught.value


async def test_rfc6749_6_a_reply_without_a_refresh_token_keeps_the_old_one(store: Store):
    connection = await refreshed(store, await granted(store), some_tokens("at-2", None))
    async with store.read() as tx:
        assert (await tx.grants.access_token(connection)).reveal() == "at-2"
        kept = await tx.grants.refresh_token(connection)
        named = await tx.grants.id_token(connection)
    assert kept is not None
    assert kept.reveal() == "rt-1"
    assert named is not None
    assert named.reveal() == "it-1"


async def test_a_late_refresh_installs_nothing_after_a_revocation(store: Store):
    connection = await granted(store)
    async with store.write() as tx:
        await tx.connections.replace(connection.revocation_requested("x", NOW), expected=connection.revision)
    with fails(ErrorCode.STORE_CONFLICT):
        await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    assert (await grant_row(store, connection))["generation"] == 1


async def test_a_grant_of_another_generation_than_its_connection_is_a_bug(store: Store):
    connection = await added(store, a_connection())
    with pytest.raises(ValueError, match="generation"):
        async with store.write() as tx:
            await tx.grants.install(
                connection.granted(NOW), some_tokens(), a_grant(7), origin=Origin.NEW, expected=1
            )


async def test_a_connection_without_a_grant_holds_no_token(store: Store):
    connection = await added(store, a_connection())
    assert (await refusal(store, connection)).code is ErrorCode.CONSENT_REQUIRED
    async with store.read() as tx:
        assert await tx.grants.refresh_token(connection) is None
        assert await tx.grants.get(ACME, connection.id) is None


async def test_the_api_role_opens_access_tokens_and_never_refresh_tokens(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    connection = await granted(store)
    api = await Store.open(database_url, KeyRing.open(key_path, Role.API), clock)
    try:
        async with api.read() as tx:
            assert (await tx.grants.access_token(connection)).reveal() == "at-1"
        for column in ("refresh_token", "id_token"):
            failure = await refusal(api, connection, column)
            assert failure.code is ErrorCode.KEY_UNAVAILABLE
            assert failure.context["row"] == f"{connection.id}/main"
        with fails(ErrorCode.KEY_UNAVAILABLE):
            await refreshed(api, connection, some_tokens("at-2", "rt-2"))
    finally:
        await api.close()
    async with store.read() as tx:
        assert (await tx.grants.access_token(connection)).reveal() == "at-1"


async def test_the_wrapped_keys_of_the_refresh_purpose_do_not_open_with_the_lease_root(
    store: Store, key_path: Path
):
    """Even with access to the database and rewritten purposes, the API's ring opens nothing."""
    connection = await granted(store)
    async with store.write() as tx:
        await tx.connection.execute(KeyRow.__table__.delete().where(KeyRow.purpose == KeyPurpose.LEASE))  # type: ignore[attr-defined]  # SQLModel adds it
    await tamper(store, KeyRow, {"purpose": KeyPurpose.LEASE.value}, purpose=KeyPurpose.REFRESH.value)
    row = await grant_row(store, connection)
    await tamper_grant(store, connection, sealed_access=row["sealed_refresh"])
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await lease(store, connection, KeyRing.open(key_path, Role.API))


@pytest.mark.parametrize("other", [{"subject": "user-2"}, {"tenant": "other"}])
async def test_a_token_swapped_between_rows_or_tenants_is_seen(store: Store, other: dict[str, str]):
    mine, theirs = await granted(store), await granted(store, **other)
    await tamper_grant(store, mine, sealed_access=(await grant_row(store, theirs))["sealed_access"])
    failure = await refusal(store, mine)
    assert failure.code in (ErrorCode.SEAL_BROKEN, ErrorCode.KEY_UNAVAILABLE)
    with pytest.raises(Failure, match=mine.id):
        await lease(store, mine, store.ring)


async def test_a_token_swapped_together_with_its_key_is_seen(store: Store):
    mine, theirs = await granted(store), await granted(store, subject="user-2")
    await tamper_grant(store, mine, sealed_access=(await grant_row(store, theirs))["sealed_access"])
    await tamper(store, KeyRow, {"connection_id": "nobody"}, connection_id=mine.id)
    await tamper(store, KeyRow, {"connection_id": mine.id}, connection_id=theirs.id)
    assert (await refusal(store, mine)).code is ErrorCode.SEAL_BROKEN


async def test_a_token_swapped_between_columns_is_seen(store: Store):
    connection = await granted(store)
    row = await grant_row(store, connection)
    swapped = {"sealed_refresh": row["sealed_id_token"], "sealed_id_token": row["sealed_refresh"]}
    await tamper_grant(store, connection, **swapped)
    assert (await refusal(store, connection, "refresh_token")).code is ErrorCode.SEAL_BROKEN
    await tamper_grant(store, connection, sealed_access=row["sealed_refresh"])
    assert (await refusal(store, connection)).code in (ErrorCode.SEAL_BROKEN, ErrorCode.KEY_UNAVAILABLE)


async def test_an_older_ciphertext_put_back_is_seen(store: Store):
    first = await granted(store)
    old = await grant_row(store, first)
    second = await refreshed(store, first, some_tokens("at-2", "rt-2"))
    for changed in ({}, {"generation": 1}):
        await tamper_grant(store, first, sealed_access=old["sealed_access"], **changed)
        assert (await refusal(store, second)).code is ErrorCode.SEAL_BROKEN
    with fails(ErrorCode.AUTHORITY_BROKEN, "connection_grant"):
        await lease(store, first, store.ring)


async def test_a_caller_with_an_older_connection_is_told_to_read_again(store: Store):
    first = await granted(store)
    await refreshed(store, first, some_tokens("at-2", "rt-2"))
    assert (await refusal(store, first)).code is ErrorCode.STORE_CONFLICT


async def test_shredding_leaves_facts_and_no_secret(store: Store):
    connection, other = await granted(store), await granted(store, subject="user-2")
    before = await grant_row(store, connection)
    async with store.write() as tx:
        await tx.proof_keys.get_or_create(ACME, connection.id, NOW)
        await tx.grants.shred(ACME, connection.id)
    async with store.read() as tx:
        assert await tx.proof_keys.get(ACME, connection.id) is None
        assert await tx.grants.get(ACME, connection.id) == a_grant(1)
        assert await tx.grants.refresh_token(connection) is None
        assert (await tx.grants.access_token(other)).reveal() == "at-1"
    assert (await refusal(store, connection)).code is ErrorCode.CONSENT_REQUIRED
    # a row from a backup doesn't open any more: its key is gone
    await tamper_grant(store, connection, sealed_access=before["sealed_access"])
    assert (await refusal(store, connection)).code is ErrorCode.KEY_UNAVAILABLE


async def test_rows_sealed_under_an_old_root_stay_readable(
    store: Store, database_url: str, ring: KeyRing, clock: SetClock
):
    connection = await granted(store)
    rotated = ring
    for lane in ROOT_PURPOSES:
        rotated = rotated.rotate(lane)
    after = await Store.open(database_url, rotated, clock)
    try:
        async with after.read() as tx:
            assert (await tx.grants.access_token(connection)).reveal() == "at-1"
        newcomer = await granted(after, tenant="newcomer")
        async with after.read() as tx:
            assert (await tx.grants.access_token(newcomer)).reveal() == "at-1"
    finally:
        await after.close()
    with fails(ErrorCode.KEY_UNAVAILABLE):  # the ring from before the rotation lacks the new root
        async with store.read() as tx:
            await tx.grants.access_token(newcomer)


async def test_no_token_is_anywhere_in_the_database(store: Store):
    await granted(store)
    async with store.read() as tx:
        for table in METADATA.sorted_tables:
            for row in (await tx.connection.execute(select(table))).all():
                content = b"|".join(bytes(it) if isinstance(it, bytes) else str(it).encode() for it in row)
                assert b"at-1" not in content
                assert b"rt-1" not in content
                assert "EVS" not in repr(row)


async def test_a_naive_moment_or_an_unsealed_value_cannot_be_stored(store: Store):
    connection = await granted(store)
    for values in ({"obtained_at": NOW.replace(tzinfo=None)}, {"sealed_access": b"plain"}):
        with fails(ErrorCode.INTERNAL):
            await tamper_grant(store, connection, **values)


async def test_two_first_grants_of_a_tenant_agree_on_its_keys(store: Store):
    connections = await asyncio.gather(*(granted(store, subject=f"s{n}") for n in range(6)))
    async with store.read() as tx:
        for connection in connections:
            assert (await tx.grants.access_token(connection)).reveal() == "at-1"
        keys = (await tx.connection.execute(select(KeyRow).filter_by(connection_id=""))).all()
    assert len(keys) == 2  # lease and refresh: nothing of this tenant used intake yet


async def test_a_second_slot_has_tokens_of_its_own(store: Store):
    connection = await granted(store)
    async with store.write() as tx:
        grant, tokens = a_grant(5, slot="bot"), some_tokens("bot-at", None)
        after = await tx.grants.install(
            connection, tokens, grant, origin=Origin.REFRESH, expected=connection.revision
        )
    async with store.read() as tx:
        assert (await tx.grants.access_token(after, "bot")).reveal() == "bot-at"
        assert await tx.grants.refresh_token(after, "bot") is None
        assert (await tx.grants.access_token(after)).reveal() == "at-1"
