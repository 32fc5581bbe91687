"""Root keys as rows: one of a purpose seals, nothing is sealed under another, no other hand writes one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.root_keys import INSTALLATION, RootKey, RootState, first_roots
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.store.keys import KeyRow
from evergrant_server.store.root_keys import RootKeyRow, require_authentic
from tests.conformance.store.samples import GITHUB
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.key_service import ScriptedKeys

INTAKE = ServicePurpose.INTAKE


async def with_rows(store: Store) -> dict[ServicePurpose, RootKey]:
    """The rows of the ring's own roots, as the first operator's command writes them."""
    file = store.ring.file
    assert file is not None
    rows = await first_roots(ScriptedKeys().of(Role.OPERATOR), file, NOW, lie_in_file=True)
    async with store.write() as tx:
        for root, wrapped in rows:
            await tx.root_keys.add(root, wrapped)
    return {root.purpose: root for root, _ in rows}


async def seal_one(store: Store) -> None:
    """Makes the tenant's intake key."""
    async with store.write() as tx:
        await tx.integrations.put(GITHUB, Secret("hush"), expected=None)


def announced(id: str) -> RootKey:
    state = RootState.ANNOUNCED
    return RootKey(id=id, purpose=INTAKE, service="scripted:intake", state=state, created_at=NOW)


async def test_a_root_is_announced_seals_and_is_retired(store: Store):
    first = (await with_rows(store))[INTAKE]
    async with store.write() as tx:
        await tx.root_keys.add(announced("root_2"), b"wrapped")
        await tx.root_keys.make_current("root_2", NOW)
        await tx.root_keys.retire(first.id, NOW)
    async with store.read() as tx:
        stored = {row.root.id: row for row in await tx.root_keys.all() if row.root.purpose is INTAKE}
    for row in stored.values():
        require_authentic(store.ring, row)
    assert {id: row.root.state for id, row in stored.items()} == {
        first.id: RootState.RETIRED,
        "root_2": RootState.CURRENT,
    }
    assert stored["root_2"].wrapped == b"wrapped"
    assert stored[first.id].wrapped is None


async def test_a_purpose_has_one_current_root(store: Store):
    await with_rows(store)
    second = announced("root_2").__replace__(state=RootState.CURRENT)
    with fails(ErrorCode.ALREADY_EXISTS, "root_2"):
        async with store.write() as tx:
            await tx.root_keys.add(second, b"wrapped")
    with fails(ErrorCode.NOT_FOUND, "root_3"):
        async with store.write() as tx:
            await tx.root_keys.make_current("root_3", NOW)


async def test_a_tenants_key_is_sealed_under_the_root_that_seals_and_no_other(store: Store):
    woken: list[bool] = []
    store.ring.when_outdated = lambda: woken.append(True)
    first = (await with_rows(store))[INTAKE]
    async with store.write() as tx:
        await tx.root_keys.add(announced("root_2"), b"wrapped")
        await tx.root_keys.make_current("root_2", NOW)
    with fails(ErrorCode.KEY_UNAVAILABLE, first.id) as caught:
        await seal_one(store)
    assert caught.value.retry_after == 1
    assert woken, "its keeper reads the rows anew"
    async with store.write() as tx:
        await tx.root_keys.make_current(first.id, NOW)
    await seal_one(store)
    async with store.read() as tx:
        roots = (await tx.connection.execute(select(col(KeyRow.wrapping_key_id)))).scalars().all()
    assert roots == [first.id]


async def test_a_root_is_not_replaced_while_something_is_sealed_under_it(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    """The transaction that seals ends first; the one that makes another root current waits for it."""
    await with_rows(store)
    async with store.write() as tx:
        await tx.root_keys.add(announced("root_2"), b"wrapped")
    other = await Store.open(database_url, KeyRing.open(key_path, Role.OPERATOR), clock)

    async def replace() -> None:
        async with other.write() as tx:
            await tx.root_keys.make_current("root_2", NOW)

    async with store.write() as tx:
        await tx.integrations.put(GITHUB, Secret("hush"), expected=None)
        replacing = asyncio.create_task(replace())
        done, _ = await asyncio.wait([replacing], timeout=0.3)
        assert not done
    await replacing
    await other.close()


async def test_without_rows_the_key_file_says_which_root_seals(store: Store):
    await seal_one(store)
    async with store.read() as tx:
        assert await tx.root_keys.all() == []


@pytest.mark.parametrize(
    "change",
    [{"state": "open"}, {"purpose": "lease"}, {"service": "evil:intake"}, {"retired_at": NOW}, {"mac": None}],
    ids=str,
)
async def test_a_row_of_a_root_that_was_changed_by_hand_is_broken(store: Store, change: dict[str, Any]):
    root = (await with_rows(store))[INTAKE]
    assert await broken_configuration(store) == []
    if "purpose" in change:
        change = change | {"state": "open"}  # the index allows one current root
    async with store.write() as tx:
        await tx.connection.execute(update(RootKeyRow).where(col(RootKeyRow.id) == root.id).values(change))
    assert [row.row for row in await broken_configuration(store)] == [root.id]
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN, root.id):
            await tx.root_keys.get(INSTALLATION, root.id)


async def test_a_gateway_writes_no_row_of_a_root(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    gateway = await Store.open(database_url, KeyRing.open(key_path, Role.GATEWAY), clock)
    with fails(ErrorCode.KEY_UNAVAILABLE, "RootKey"):
        async with gateway.write() as tx:
            await tx.root_keys.add(announced("root_2"), b"wrapped")
    await gateway.close()
