"""A process holds what the key service has unwrapped for a stated time after its last answer, no longer."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import (
    AssociatedData,
    KeyPurpose,
    KeyRing,
    ReadySeal,
    Role,
    new_sealing_key,
    seal,
)
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyServiceFailure,
    ServicePurpose,
)
from evergrant_server.crypto.root_keys import RootKey, RootState
from evergrant_server.store import Store
from evergrant_server.store.root_keys import RootKeyRow
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.conformance.store.samples import GITHUB
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.key_service import ScriptedKeys, ring_of, wrapped_by
from tests.fakes.patience import PATIENCE_S

LONG, SHORT = timedelta(minutes=5), timedelta(seconds=1.5)
LEASE = ServicePurpose.LEASE
PLACE = AssociatedData("acme", "key", "tky_1", "sealed_key:lease:")


def failure_of(act: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        act()
    return caught.value


@pytest.mark.parametrize("role", Role)
async def test_a_role_holds_the_keys_of_its_purposes_without_any_key_file(
    store: Store, database_url: str, clock: SetClock, role: Role
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with store.write() as tx:
        await tx.integrations.put(GITHUB, Secret("hush"), expected=None)
    async with ring_of(keys, database_url, role, LONG, clock) as (opened, keeper):
        await keeper.begin()
        ring = opened.ring
        assert {*ring.root_ids()} == {KeyPurpose(purpose) for purpose in ring.root_ids()}
        assert ring.subject_hash("acme", "ann") == store.ring.subject_hash("acme", "ann")
        async with opened.read() as tx:
            assert await tx.integrations.get(GITHUB.tenant, GITHUB.id), "its row is verified"
        asked = {purpose for _, purpose in keys.calls} - {None}
        assert ServicePurpose.REFRESH in asked
        keys.calls.clear()
        await keeper.look()
        assert keys.calls == [], "what was unwrapped a moment ago isn't asked for again"
        if role is Role.GATEWAY:
            assert ring.sign("row").startswith("gateway.")
            assert failure_of(lambda: ring.derive("api.csrf")).code is ErrorCode.KEY_UNAVAILABLE
        else:
            assert ring.sign("row") == store.ring.sign("row")


@pytest.mark.parametrize("role", [Role.API, Role.GATEWAY])
async def test_no_principal_is_asked_for_a_key_that_its_role_may_not_use(
    store: Store, database_url: str, clock: SetClock, role: Role
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    keys.calls.clear()
    async with ring_of(keys, database_url, role, LONG, clock) as (opened, keeper):
        await keeper.begin()
        used = {purpose for _, purpose in keys.calls}
        assert ServicePurpose.REFRESH not in used
        assert used == {LEASE, ServicePurpose.GATEWAY} or role is Role.API
        async with opened.read() as tx:
            rows = {row.root.purpose: row for row in await tx.root_keys.all()}
        refresh = rows[ServicePurpose.REFRESH]
        assert refresh.wrapped is not None
        with pytest.raises(KeyServiceFailure) as caught:
            await keys.of(role).unwrap(ServicePurpose.REFRESH, refresh.wrapped, Context(refresh.root.id))
        assert (caught.value.reason, caught.value.principal) == (FailureReason.DENIED, role)


async def test_while_the_service_is_away_keys_are_held_until_the_bound_and_come_back_by_themselves(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with ring_of(keys, database_url, Role.API, SHORT, clock) as (opened, keeper):
        await keeper.begin()
        ring, key = opened.ring, new_sealing_key("tky")
        wrapped = ring.wrap(KeyPurpose.LEASE, PLACE, key)
        ready = ReadySeal(key, PLACE, seal(key, PLACE, b"at-1"), ring.hold_of(KeyPurpose.LEASE))
        keys.away = True
        await keeper.look(confirm=True)
        assert ring.unwrap(KeyPurpose.LEASE, PLACE, key.id, wrapped).reveal() == key.reveal()
        assert ready.open() == b"at-1"
        await asyncio.sleep(SHORT.total_seconds() + 0.1)  # nobody looks: the time is over by itself
        for act in (
            lambda: ring.require(KeyPurpose.LEASE),
            lambda: ring.unwrap(KeyPurpose.LEASE, PLACE, key.id, wrapped),
            lambda: ring.wrap(KeyPurpose.LEASE, PLACE, key),
            lambda: ring.sign("row"),
            lambda: ring.signer("authority.x", "row"),
            lambda: ring.token_mac("x"),
            lambda: ring.subject_hash("acme", "ann"),
            lambda: ring.keyed_hash("audit head api", "x"),
            ready.open,
        ):
            assert failure_of(act).code is ErrorCode.KEY_UNAVAILABLE
        failure = failure_of(lambda: ring.require(KeyPurpose.LEASE))
        assert failure.retry_after == 5
        assert "scripted" not in failure.detail, "whoever asked learns no names"
        assert "scripted:" in failure_of(ring.require_all).detail
        keys.away = False
        async with keeper.running():
            keeper.wake()
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        ring.require_all()
                        break
                    except Failure:
                        await asyncio.sleep(0.01)
        assert ring.unwrap(KeyPurpose.LEASE, PLACE, key.id, wrapped).reveal() == key.reveal()
        assert failure_of(ready.open).code is ErrorCode.KEY_UNAVAILABLE, "it is made anew from its row"


async def test_a_key_that_is_taken_away_ends_at_once_what_was_held(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with ring_of(keys, database_url, Role.API, SHORT, clock) as (opened, keeper):
        await keeper.begin()
        keys.disabled = {LEASE}
        await keeper.look(confirm=True)
        failure = failure_of(lambda: opened.ring.require(KeyPurpose.LEASE))
        assert failure.code is ErrorCode.KEY_GONE
        assert failure.retry_after is None
        row = opened.ring.current_root_id(KeyPurpose.LEASE)
        for name in (row, "scripted:lease", "as api", "is disabled"):
            assert name in failure_of(opened.ring.require_all).detail
        opened.ring.require(KeyPurpose.INTAKE)
        keys.disabled = set()
        await keeper.look()
        opened.ring.require(KeyPurpose.LEASE)


async def test_a_denied_key_names_principal_key_and_row(store: Store, database_url: str, clock: SetClock):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    worker = await Store.open(database_url, KeyRing("scripted", Role.WORKER, None), clock)
    keeper = RootKeeper(worker, [keys.of(Role.API)], LONG)
    with fails(ErrorCode.KEY_DENIED, "scripted:refresh .as api. may not be used") as caught:
        await keeper.begin()
    assert caught.value.context.items() >= {"key": "scripted:refresh", "principal": "api"}.items()
    assert caught.value.context["row"].startswith("root_")
    worker.ring.require(KeyPurpose.LEASE)
    assert failure_of(lambda: worker.ring.worker_mac("x")).code is ErrorCode.KEY_DENIED
    await keeper.close()
    await worker.close()


@pytest.mark.parametrize(
    "change", [{"wrapped": b""}, {"wrapped": b"\x01"}, {"mac": None}, {"purpose": "intake"}], ids=str
)
async def test_a_broken_row_is_named_and_its_root_is_not_used(
    store: Store, database_url: str, clock: SetClock, change: dict[str, object]
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    root = store.ring.current_root_id(KeyPurpose.LEASE)
    if "purpose" in change:
        change = change | {"state": "open"}
    async with store.write() as tx:
        await tx.connection.execute(update(RootKeyRow).where(col(RootKeyRow.id) == root).values(change))
    async with ring_of(keys, database_url, Role.API, LONG, clock) as (opened, keeper):
        with pytest.raises(Failure, match=f"{root}|that seals for lease"):
            await keeper.begin()
        named = failure_of(opened.ring.require_all)
        assert named.code in (ErrorCode.SEAL_BROKEN, ErrorCode.AUTHORITY_BROKEN)
        assert root in named.detail
        failure_of(lambda: opened.ring.require(KeyPurpose.LEASE))


async def test_a_new_root_reaches_a_running_process_which_seals_with_it_once_it_is_current(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with ring_of(keys, database_url, Role.WORKER, LONG, clock) as (opened, keeper):
        await keeper.begin()
        before, key = opened.ring.current_root_id(KeyPurpose.LEASE), new_sealing_key("root")
        root = RootKey(
            id=key.id, purpose=LEASE, service="scripted:lease", state=RootState.ANNOUNCED, created_at=NOW
        )
        wrapped = await keys.of(Role.WORKER).wrap(LEASE, key.reveal(), Context(key.id))
        async with store.write() as tx:
            await tx.root_keys.add(root, wrapped)
        await keeper.look()
        assert set(opened.ring.root_ids()[KeyPurpose.LEASE]) == {before, key.id}
        assert opened.ring.current_root_id(KeyPurpose.LEASE) == before
        async with store.write() as tx:
            await tx.root_keys.make_current(key.id, NOW)
        await keeper.look()
        assert opened.ring.current_root_id(KeyPurpose.LEASE) == key.id
        async with store.write() as tx:
            await tx.root_keys.retire(before, NOW)
        await keeper.look()
        assert opened.ring.root_ids()[KeyPurpose.LEASE] == (key.id,)
        opened.ring.require_all()


async def test_roots_in_the_key_file_and_in_rows_open_side_by_side(store: Store, clock: SetClock):
    """From the key file to a service: the file's own root gets a row, and once retired it isn't held."""
    keys, ring = ScriptedKeys(), store.ring
    keeper = RootKeeper(store, [keys.of(Role.OPERATOR)], LONG)
    await keeper.begin()
    before, key = ring.current_root_id(KeyPurpose.LEASE), new_sealing_key("tky")
    old = ring.wrap(KeyPurpose.LEASE, PLACE, key)
    new = new_sealing_key("root")
    wrapped = await keys.of(Role.OPERATOR).wrap(LEASE, new.reveal(), Context(new.id))
    async with store.write() as tx:
        for id, service, value, state in (
            (before, "file:lease", None, RootState.CURRENT),
            (new.id, "scripted:lease", wrapped, RootState.ANNOUNCED),
        ):
            root = RootKey(id=id, purpose=LEASE, service=service, state=state, created_at=NOW)
            await tx.root_keys.add(root, value)
        await tx.root_keys.make_current(new.id, NOW)
    await keeper.look()
    assert ring.current_root_id(KeyPurpose.LEASE) == new.id
    assert ring.unwrap(KeyPurpose.LEASE, PLACE, key.id, old).reveal() == key.reveal()
    async with store.write() as tx:
        await tx.root_keys.retire(before, NOW)
    await keeper.look()
    assert ring.root_ids()[KeyPurpose.LEASE] == (new.id,)
    assert (
        failure_of(lambda: ring.unwrap(KeyPurpose.LEASE, PLACE, key.id, old)).code
        is ErrorCode.KEY_UNAVAILABLE
    )
    await keeper.close()


async def test_a_database_without_rows_names_the_command_that_makes_them(
    store: Store, database_url: str, clock: SetClock
):
    async with ring_of(ScriptedKeys(), database_url, Role.API, LONG, clock) as (_, keeper):
        with fails(ErrorCode.KEY_UNAVAILABLE, "keys create"):
            await keeper.begin()


async def test_another_service_than_that_of_the_rows_is_named(
    store: Store, database_url: str, clock: SetClock
):
    await wrapped_by(ScriptedKeys(), store)
    other = ScriptedKeys(name="other")
    async with ring_of(other, database_url, Role.API, LONG, clock) as (_, keeper):
        with fails(ErrorCode.KEY_GONE, "scripted:.*EVERGRANT_KEY_SERVICE_BEFORE"):
            await keeper.begin()


async def test_a_process_goes_on_when_rows_are_wrapped_by_a_service_that_it_does_not_know(
    store: Store, database_url: str, clock: SetClock
):
    """From one service to another, without a stop: what was wrapped before still confirms what it holds."""
    first, second = ScriptedKeys(), ScriptedKeys(name="second")
    await wrapped_by(first, store)
    async with ring_of(first, database_url, Role.API, LONG, clock) as (opened, keeper):
        await keeper.begin()
        async with store.write() as tx:
            for stored in await tx.root_keys.all():
                service, root = second.of(Role.OPERATOR), stored.root
                value = await first.of(Role.OPERATOR).unwrap(
                    root.purpose, stored.wrapped or b"", Context(root.id)
                )
                values = {"wrapped": await service.wrap(root.purpose, value, Context(root.id))}
                await tx.connection.execute(
                    update(RootKeyRow).where(col(RootKeyRow.id) == root.id).values(values)
                )
        await keeper.look(confirm=True)
        opened.ring.require_all()
        first.disabled = set(ServicePurpose)
        await keeper.look(confirm=True)
        assert failure_of(lambda: opened.ring.require(KeyPurpose.LEASE)).code is ErrorCode.KEY_GONE
    async with ring_of(second, database_url, Role.API, LONG, clock) as (_, keeper):
        await keeper.begin()


async def test_a_process_with_the_key_file_goes_on_when_a_service_wraps_its_keys(
    store: Store, key_path: Path
):
    keeper = RootKeeper(store, [open_key_service("file", key_path)], LONG)
    await keeper.begin()
    signed = store.ring.sign("row")
    await wrapped_by(ScriptedKeys(), store)
    await keeper.look()
    store.ring.require_all()
    assert store.ring.sign("row") == signed
    await keeper.close()
