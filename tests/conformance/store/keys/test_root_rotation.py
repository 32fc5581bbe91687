"""Roots that a key service wraps are replaced under everything that stands under them, and then retired."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from activities.keys.roots import RootRotation
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import KeyPurpose, Role
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.root_keys import RootKeyRow
from evergrant_server.store.rotation.processes import MAY_COME_BACK
from evergrant_server.wiring.heartbeat import Heartbeat
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.conformance.store.samples import ACME, GITHUB, granted
from tests.conformance.store.test_grants import columns_of
from tests.fakes.clock import SetClock
from tests.fakes.failures import fails
from tests.fakes.key_rotations import a_rotation
from tests.fakes.key_service import ScriptedKeys, ring_of, wrapped_by

LONG = timedelta(hours=1)
PURPOSES = (KeyPurpose.REFRESH, KeyPurpose.LEASE)


async def rotated(
    worker: Store,
    keys: ScriptedKeys,
    keepers: Sequence[RootKeeper],
    call: KeyRotationCall,
    until: RotationStep | None = None,
) -> KeyRotationProgress:
    """To its end, to a step, or until it waits for a process. Keepers look after each page."""
    progress = call.progress
    for _ in range(100):
        if progress.done or progress.waits_for or progress.step is until is not None:
            return progress
        call = call.__replace__(progress=progress)
        progress = await RootRotation(worker, call, 3, [keys.of(Role.WORKER)]).advance(progress)
        for keeper in keepers:
            await keeper.look()
    raise AssertionError(f"it doesn't end: {progress}")


def of_root(purpose: KeyPurpose, **changes: Any) -> KeyRotationCall:
    return a_rotation(RotationKind.ROOT, **{"tenant": INSTALLATION, "purposes": (purpose.value,), **changes})


async def with_rows(store: Store) -> Any:
    async with store.write() as tx:
        await tx.integrations.put(GITHUB, None, expected=None)
    return [await granted(store, subject=f"user-{number}") for number in range(4)]


@pytest.mark.parametrize("purpose", PURPOSES)
async def test_everything_moves_to_the_new_root_and_the_old_one_is_retired(
    store: Store, database_url: str, clock: SetClock, purpose: KeyPurpose
):
    keys = ScriptedKeys()
    connections = await with_rows(store)
    await wrapped_by(keys, store)
    async with (
        ring_of(keys, database_url, Role.WORKER, LONG, clock) as (worker, its_keeper),
        ring_of(keys, database_url, Role.API, LONG, clock) as (api, api_keeper),
    ):
        keepers = (its_keeper, api_keeper)
        for keeper in keepers:
            await keeper.begin()
        before = worker.ring.current_root_id(purpose)
        cached = [await LeaseRows(api).load(ACME, connection.id) for connection in connections]
        progress = await rotated(worker, keys, keepers, of_root(purpose))
        assert (progress.done, progress.left, progress.destroyed) == (True, 0, 1)
        new = worker.ring.current_root_id(purpose)
        assert new != before
        assert before not in worker.ring.root_ids()[purpose]
        for connection, old_row in zip(connections, cached, strict=True):
            row = await LeaseRows(api).load(ACME, connection.id)
            assert row is not None
            assert row.open_access_token(api.ring).reveal() == "at-1"
            async with worker.read() as tx:
                refresh = await tx.grants.refresh_token(connection)
                rows = await tx.context_rows.connection(ACME, connection.id)
            assert refresh is not None
            assert refresh.reveal() == "rt-1"
            assert rows is not None, "its destination has an authenticator of the new root"
            assert old_row is not None
        if purpose is KeyPurpose.REFRESH:
            integration = await columns_of(worker, IntegrationRow, id=GITHUB.id)
            assert f".{new}." in integration["destination_mac"]
            for connection in connections:
                grant = await columns_of(worker, ConnectionGrantRow, connection_id=connection.id)
                assert grant["destination_mac"].startswith(f"{new}.")
                row = await columns_of(worker, ConnectionRow, id=connection.id)
                assert row["account_mac"].startswith(f"{new}.")


async def test_a_new_root_waits_for_every_live_process_and_retiring_for_those_that_may_come_back(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await with_rows(store)
    await wrapped_by(keys, store)
    async with (
        ring_of(keys, database_url, Role.WORKER, LONG, clock) as (worker, its_keeper),
        ring_of(keys, database_url, Role.WORKER, LONG, clock) as (stale, stale_keeper),
    ):
        await its_keeper.begin()
        await stale_keeper.begin()
        alive, stopped = Heartbeat(worker, clock), Heartbeat(stale, clock)
        for beat in (alive, stopped):
            await beat.beat()
        call = of_root(KeyPurpose.REFRESH)
        progress = await rotated(worker, keys, (its_keeper,), call)
        assert progress.step is RotationStep.HOLD
        assert len(progress.waits_for) == 2, "neither has said that it holds the new root"
        await stale_keeper.look()
        for beat in (alive, stopped):
            await beat.beat()
        call = call.__replace__(progress=progress.__replace__(waits_for=()))
        progress = await rotated(worker, keys, (its_keeper,), call)
        assert progress.step is RotationStep.DESTROY
        await alive.beat()
        progress = await rotated(
            worker, keys, (its_keeper,), call.__replace__(progress=progress.__replace__(waits_for=()))
        )
        assert len(progress.waits_for) == 1, "the other one still seals with the old root"
        if not store.is_sqlite:
            return  # the database's clock decides, and it isn't set
        clock.advance(MAY_COME_BACK.total_seconds() / 2)
        await alive.beat()
        progress = await rotated(
            worker, keys, (its_keeper,), call.__replace__(progress=progress.__replace__(waits_for=()))
        )
        assert len(progress.waits_for) == 1, "it is silent, and may come back"
        clock.advance(MAY_COME_BACK.total_seconds())
        await alive.beat()
        progress = await rotated(
            worker, keys, (its_keeper,), call.__replace__(progress=progress.__replace__(waits_for=()))
        )
        assert (progress.done, progress.destroyed) == (True, 1)


async def test_a_retired_root_whose_earlier_row_is_put_back_opens_and_seals_nothing(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await with_rows(store)
    await wrapped_by(keys, store)
    async with ring_of(keys, database_url, Role.WORKER, LONG, clock) as (worker, keeper):
        await keeper.begin()
        before = worker.ring.current_root_id(KeyPurpose.LEASE)
        earlier = await columns_of(store, RootKeyRow, id=before)
        await rotated(worker, keys, (keeper,), of_root(KeyPurpose.LEASE))
        new = worker.ring.current_root_id(KeyPurpose.LEASE)
        async with store.write() as tx:
            mine = update(RootKeyRow)
            await tx.connection.execute(mine.where(col(RootKeyRow.id) == new).values(state="open"))
            await tx.connection.execute(mine.where(col(RootKeyRow.id) == before).values(earlier))
        await keeper.look()
        assert before not in worker.ring.root_ids()[KeyPurpose.LEASE]
        with fails(ErrorCode.AUTHORITY_BROKEN, before):
            worker.ring.require(KeyPurpose.LEASE)
        assert before in {row.row for row in await broken_configuration(store)}


async def test_what_roles_sign_with_is_wrapped_anew_by_another_service(
    store: Store, database_url: str, clock: SetClock
):
    """From one service to another: afterwards nothing needs the one of before."""
    first, second = ScriptedKeys(), ScriptedKeys(name="second")
    await with_rows(store)
    await wrapped_by(first, store)
    services = [second.of(Role.WORKER), first.of(Role.WORKER)]
    purposes = tuple(purpose.value for purpose in ServicePurpose)
    names = tuple(f"second:{purpose}" for purpose in purposes)
    async with ring_of(second, database_url, Role.WORKER, LONG, clock, before=first) as (worker, keeper):
        await keeper.begin()
        signed, derived = worker.ring.sign("row"), worker.ring.derive("api.csrf")
        call = of_root(KeyPurpose.LEASE, purposes=purposes, wrapped_by=names)
        progress = call.progress
        for _ in range(200):
            if progress.done:
                break
            call = call.__replace__(progress=progress)
            progress = await RootRotation(worker, call, 3, services).advance(progress)
            await keeper.look()
        assert (progress.done, progress.left, progress.replaced, progress.destroyed) == (True, 0, 5, 5)
    first.away = True
    for role in Role:
        async with ring_of(second, database_url, role, LONG, clock) as (opened, its_keeper):
            await its_keeper.begin()
            opened.ring.require_all()
            assert opened.ring.sign("row") == signed or role is Role.GATEWAY
            assert role is Role.GATEWAY or opened.ring.derive("api.csrf") == derived


async def test_a_worker_with_the_settings_of_before_leaves_a_move_to_another(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with ring_of(keys, database_url, Role.WORKER, LONG, clock) as (worker, keeper):
        await keeper.begin()
        call = of_root(KeyPurpose.LEASE, wrapped_by=("second:lease",))
        progress = await rotated(worker, keys, (keeper,), call)
        assert progress.step is RotationStep.ANNOUNCE
        assert progress.waits_for == ("a worker whose EVERGRANT_KEY_SERVICE has the key second:lease",)


async def test_a_process_that_was_asleep_wraps_nothing_under_a_root_that_was_replaced(
    store: Store, database_url: str, clock: SetClock
):
    keys = ScriptedKeys()
    await wrapped_by(keys, store)
    async with (
        ring_of(keys, database_url, Role.WORKER, LONG, clock) as (worker, its_keeper),
        ring_of(keys, database_url, Role.WORKER, LONG, clock) as (asleep, its_own),
    ):
        await its_keeper.begin()
        await its_own.begin()
        await rotated(worker, keys, (its_keeper,), of_root(KeyPurpose.LEASE))
        with fails(ErrorCode.KEY_UNAVAILABLE, "read anew"):
            async with asleep.write() as tx:
                await tx.sealer.get_or_create_keys(ACME, "", (KeyPurpose.LEASE,))
        await its_own.look()
        async with asleep.write() as tx:
            await tx.sealer.get_or_create_keys(ACME, "", (KeyPurpose.LEASE,))


async def test_roots_of_a_key_file_are_rewrapped_without_rows(store: Store):
    """After the file's own step, `keys rotate`, and a restart."""
    await with_rows(store)
    old = store.ring.current_root_id(KeyPurpose.REFRESH)
    ring = store.ring.rotate(KeyPurpose.REFRESH)
    after = Store(store._database, ring, store._clock)
    call = of_root(KeyPurpose.REFRESH, command=RotationCommand.REWRAP)
    progress = await rotated(after, ScriptedKeys(), (), call)
    assert (progress.done, progress.left, progress.broken) == (True, 0, 0)
    async with after.read() as tx:
        assert await tx.root_moves.count_left((KeyPurpose.REFRESH,), old) > 0, "all of it stands elsewhere"
        assert (
            await tx.root_moves.count_left((KeyPurpose.REFRESH,), ring.current_root_id(KeyPurpose.REFRESH))
            == 0
        )
