"""Two moves of one tenant in one cell, whose steps come between those of each other."""

import asyncio
from datetime import timedelta

import pytest
from joserfc.jwk import OKPKey

from activities.cells.receiving import erase_all
from evergrant_server.access.cells import moves
from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import MovePhase
from evergrant_server.core.cells.moves import MoveOffer, MoveSide, MoveState, TenantMove
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import MoveId, Tenant, new_id
from evergrant_server.crypto import Recipient
from evergrant_server.store import Store
from evergrant_server.store.cells.moves import TenantMoves
from evergrant_server.store.tenants import Tenants
from tests.conformance.store.samples import ACME, granted
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, clock, database_url, key_path, postgres_server, ring, store
from tests.fakes.failures import fails

__all__ = ["clock", "database_url", "key_path", "postgres_server", "ring", "store"]
HERE, THERE, ELSEWHERE = (f"https://{name}.evergrant.test" for name in ("eu", "us", "ap"))
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
RECIPIENT = Recipient.parse(
    {n: str(v) for n, v in OKPKey.generate_key("X25519", private=True).as_dict(private=False).items()}
)


async def begun(store: Store) -> None:
    async with store.write() as tx:
        await tx.tenants.begin(ACME)


async def offered(store: Store, clock: SetClock, target: str = THERE) -> TenantMove:
    move, _ = await moves.offer(store, clock, ACME, HERE, target, RECIPIENT)
    return move


def a_move(state: MoveState, **changes: object) -> TenantMove:
    names = {"tenant": ACME, "id": MoveId(new_id("mov")), "side": MoveSide.SOURCE, "peer": ELSEWHERE}
    times = {"created_at": NOW, "expires_at": NOW + timedelta(days=7)}
    return TenantMove.model_validate({**names, **times, "state": state, **changes})


async def beside(store: Store, move: TenantMove) -> TenantMove:
    """A move whose row is there, however it came there."""
    async with store.write() as tx:
        await tx.tenant_moves.add(move)
    return move


async def stands(store: Store, phase: MovePhase) -> None:
    async with store.write() as tx:
        standing = await tx.tenants.standing(ACME)
        await tx.tenants.put(standing.__replace__(phase=phase, disabled=True), expected=standing.revision)


async def received(store: Store, clock: SetClock) -> TenantMove:
    offer = MoveOffer(
        move_id=MoveId(new_id("mov")),
        tenant=ACME,
        source=THERE,
        secret="-",
        expires_at=NOW + timedelta(days=7),
        cell_check=store.ring.cell_check(),
        keys=(),
        public={},
        worker_macs={},
    )
    return await moves.receive(store, clock, offer, HERE)


async def phase_of(store: Store) -> MovePhase:
    async with store.read() as tx:
        return (await tx.tenants.standing(ACME)).phase


@ON_POSTGRESQL
async def test_of_two_offers_at_once_one_goes_on(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    await begun(store)
    both, waiting, open_of = asyncio.Barrier(2), [1, 1], TenantMoves.open_of

    async def read_by_both(rows: TenantMoves, tenant: Tenant) -> TenantMove | None:
        move = await open_of(rows, tenant)
        if waiting:
            waiting.pop()
            await both.wait()
        return move

    monkeypatch.setattr(TenantMoves, "open_of", read_by_both)
    await asyncio.gather(*(offered(store, clock, target) for target in (THERE, ELSEWHERE)))
    async with store.read() as tx:
        states = [move.state for move in await tx.tenant_moves.page(ACME)]
    assert sorted(states) == [MoveState.OFFERED, MoveState.UNDONE]


async def test_a_tenant_that_one_move_has_paused_isnt_paused_by_another_nor_resumed_by_its_end(
    store: Store, clock: SetClock
):
    await begun(store)
    first = await offered(store, clock)
    second = await beside(store, a_move(MoveState.OFFERED))
    assert await moves.pause(store, clock, first) == 0
    with fails(ErrorCode.STORE_CONFLICT, "Another move"):
        await moves.pause(store, clock, second)
    await moves.close(store, clock, first)
    await moves.resume(store, clock, second)
    assert await phase_of(store) is MovePhase.MOVED


async def test_a_move_doesnt_close_a_tenant_whose_phase_another_has_changed(store: Store, clock: SetClock):
    await begun(store)
    first = await offered(store, clock)
    second = await beside(store, a_move(MoveState.PAUSED))
    assert await moves.pause(store, clock, first) == 0
    await moves.close(store, clock, first)
    with fails(ErrorCode.STORE_CONFLICT, "Another move"):
        await moves.close(store, clock, second)
    async with store.read() as tx:
        assert (await tx.tenants.standing(ACME)).moved_to == THERE


@ON_POSTGRESQL
async def test_a_tenant_that_is_disabled_while_a_move_pauses_it_stays_disabled(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    await begun(store)
    move, require_enabled = await offered(store, clock), Tenants.require_enabled

    async def disabled_after(rows: Tenants, tenant: Tenant) -> None:
        await require_enabled(rows, tenant)
        await set_disabled(store, clock, tenant, "a test", disabled=True)

    monkeypatch.setattr(Tenants, "require_enabled", disabled_after)
    with fails(ErrorCode.TENANT_DISABLED):
        await moves.pause(store, clock, move)
    async with store.read() as tx:
        assert (await tx.tenants.standing(ACME)).disabled


@pytest.mark.parametrize(
    ("earlier", "why"),
    [
        (a_move(MoveState.ERASING), r"erasing\): wait"),
        (a_move(MoveState.UNDOING, side=MoveSide.TARGET), r"undoing\): wait"),
        (a_move(MoveState.LEFT), "tenants forget"),
    ],
    ids=["erasing", "undoing", "left"],
)
async def test_a_tenant_doesnt_arrive_while_an_earlier_move_has_rows_to_delete(
    store: Store, clock: SetClock, earlier: TenantMove, why: str
):
    """Its rows may be gone already: what its job deletes next would be what has arrived."""
    await begun(store)
    await stands(store, MovePhase.MOVED)
    await beside(store, earlier)
    with fails(ErrorCode.ALREADY_EXISTS, why):
        await received(store, clock)
    async with store.write() as tx:
        done = earlier.__replace__(state=MoveState.DONE)
        await tx.tenant_moves.replace(done, expected=earlier.revision)
    await received(store, clock)
    assert await phase_of(store) is MovePhase.ARRIVING


@pytest.mark.parametrize("phase", [MovePhase.HERE, MovePhase.ARRIVING])
async def test_a_move_that_deletes_leaves_a_tenant_that_has_come_back(
    store: Store, clock: SetClock, phase: MovePhase
):
    await begun(store)
    await granted(store)
    await stands(store, phase)
    earlier = await beside(store, a_move(MoveState.ERASING))
    with fails(ErrorCode.ALREADY_EXISTS, "its rows stay"):
        await erase_all(store, earlier, ("tenant_move",))
    async with store.read() as tx:
        assert not await tx.moved_rows.is_empty(ACME)
    await stands(store, MovePhase.MOVED)
    await erase_all(store, earlier, ("tenant_move",))
    async with store.read() as tx:
        assert await tx.moved_rows.is_empty(ACME)
