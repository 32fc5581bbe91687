"""A tenant moves from one cell to another: two stores, two key files, and the source's API over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from joserfc.jwk import OKPKey
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.cells.copying import Copier, OtherCell
from activities.cells.moving import CellActivities
from evergrant_server.access.cells import moves
from evergrant_server.cli.doctor import CheckFailed, installation
from evergrant_server.cli.tenants import _required_here, set_disabled
from evergrant_server.core.access import Action, MovePhase
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.cells.moves import MoveOffer, MoveState, TenantMove
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.cells import MoveResult, MoveTenant
from evergrant_server.crypto import KeyRing, Recipient, Role
from evergrant_server.crypto.bundle import cell_secrets
from evergrant_server.crypto.jose import open_sealed_to
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.settings import load_settings
from evergrant_server.store.authority.scan import broken_configuration, broken_connections
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.failures import fails
from tests.fakes.http_server import served

PRIVATE = OKPKey.generate_key("X25519", private=True)
THERE = "https://eu.evergrant.test"


class NoRuns:
    """Stands in for Temporal on both sides: remembers which workflows were started."""

    def __init__(self) -> None:
        self.started: list[str] = []

    async def start_workflow(self, tenant: Tenant, id: ConnectionId) -> bool:
        self.started.append(id)
        return True

    async def newest_run(self, workflow: str) -> None:
        return None


@dataclass
class Cells:
    here: Api
    there: Api
    url: str
    key: str
    connections: list[Connection]
    runs: NoRuns

    async def offered(self) -> MoveOffer:
        recipient = Recipient.parse({n: str(v) for n, v in PRIVATE.as_dict(private=False).items()})
        _, sealed = await moves.offer(self.here.worker, self.here.clock, TENANT, self.url, THERE, recipient)
        opened = open_sealed_to(sealed, json.dumps(PRIVATE.as_dict(private=True)))
        return MoveOffer.model_validate_json(opened.reveal())

    async def received(self) -> TenantMove:
        return await moves.receive(self.there.worker, self.there.clock, await self.offered(), THERE)

    def activities(self, api: Api) -> CellActivities:
        egress = Egress(EgressPolicy(allow=(self.url.removeprefix("http://"),)))
        runs: Any = self.runs
        return CellActivities(api.worker, runs, runs, egress, api.clock)

    async def carried_out(self, move: TenantMove, api: Api | None = None) -> MoveResult:
        request = MoveTenant(tenant=TENANT, move_id=move.id, context=RequestContext(by="operator"))
        return await ActivityEnvironment().run(self.activities(api or self.there).move_tenant, request)

    async def move_there(self) -> TenantMove:
        async with self.there.worker.read() as tx:
            (move,) = await tx.tenant_moves.page(TENANT)
        return move


@pytest_asyncio.fixture
async def cells(tmp_path: Path) -> AsyncIterator[Cells]:
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    async with running_api(folders[0]) as here:
        shared = cell_secrets(here.worker.ring.bundle_for(ServicePurpose.AUTHORITY))
        KeyRing.create(folders[1] / "keys.json", cell_of=shared)
        ring = KeyRing.open(folders[1] / "keys.json", Role.API)
        async with running_api(folders[1], ring=ring) as there, served(here.app) as url:
            integration = await here.integration()
            names = [f"user-{number}" for number in range(3)]
            connections = [await here.active(integration, f"at-of-{name}", subject=name) for name in names]
            key = await here.app_with("pipeline", Action.TOKEN)
            yield Cells(here, there, url, key, connections, NoRuns())


async def test_a_moved_tenant_is_leased_there_and_redirected_here(cells: Cells):
    move = await cells.received()
    assert (await cells.there.lease(cells.key)).status_code == 401  # nothing is copied yet
    result = await cells.carried_out(move)
    assert result.state is MoveState.DONE
    there = await cells.there.lease(cells.key)
    assert (there.status_code, there.json()["access_token"]) == (200, "at-of-user-1")
    here = await cells.here.lease(cells.key)
    assert (here.status_code, here.json()["code"], here.json()["moved_to"]) == (421, "tenant_moved", THERE)
    assert sorted(cells.runs.started) == sorted(each.id for each in cells.connections)
    (moved,) = await cells.here.records(AuditAction.TENANT_MOVED)
    (arrived,) = await cells.there.records(AuditAction.TENANT_ARRIVED)
    assert moved.detail["root"] == arrived.detail["root"] == result.root
    assert moved.detail["rows"] == arrived.detail["rows"] == result.rows


async def test_what_moved_is_signed_by_the_cell_where_it_lives(cells: Cells):
    await cells.carried_out(await cells.received())
    assert await broken_configuration(cells.there.worker) == []
    assert [row async for row in broken_connections(cells.there.worker)] == []


async def test_a_paused_tenant_is_leased_and_spends_nothing(cells: Cells):
    offered = await cells.offered()
    move = await moves.authenticate(
        cells.here.store, cells.here.clock, TENANT, offered.move_id, offered.secret
    )
    assert await moves.pause(cells.here.store, cells.here.clock, move) == 0
    assert (await cells.here.lease(cells.key)).status_code == 200
    async with cells.here.worker.read() as tx:
        position = await tx.connections.position(TENANT, cells.connections[0].id)
    assert position is not None
    assert position.phase == "paused"


async def test_doctor_names_a_move_whose_source_stays_paused(cells: Cells, tmp_path: Path):
    settings = load_settings(data_dir=tmp_path / "here")
    assert await installation.moves(settings) == "no tenant moves"
    offered = await cells.offered()
    assert await installation.moves(settings) == f"{TENANT} is offered"
    secret = (offered.move_id, offered.secret)
    move = await moves.authenticate(cells.here.store, cells.here.clock, TENANT, *secret)
    assert await moves.pause(cells.here.store, cells.here.clock, move) == 0
    with pytest.raises(
        CheckFailed, match=rf"^1 moves .*{TENANT} \(paused; the other cell is {THERE}\)"
    ) as found:
        await installation.moves(settings)
    assert f"tenants undo {TENANT}" in found.value.repair


async def test_a_tenant_that_was_disabled_after_its_offer_stays_disabled(cells: Cells):
    move = await cells.received()
    await set_disabled(cells.here.worker, cells.here.clock, TENANT, "a test", disabled=True)
    task = asyncio.create_task(cells.carried_out(move))
    while "tenant_disabled" not in (await cells.move_there()).problem:
        await asyncio.sleep(0.02)
    await moves.order(cells.there.worker, cells.there.clock, TENANT, undo=True)
    assert (await task).state is MoveState.UNDONE
    assert (await cells.here.lease(cells.key)).json()["code"] == "tenant_disabled"


async def test_a_tenant_that_has_left_is_neither_enabled_nor_erased(cells: Cells):
    await cells.carried_out(await cells.received())
    with pytest.raises(Failure, match="moved"):
        await set_disabled(cells.here.worker, cells.here.clock, TENANT, "a test", disabled=False)
    async with cells.here.worker.read() as tx:
        with pytest.raises(Failure, match="forget"):
            await _required_here(TENANT, tx)


async def test_a_row_that_was_altered_at_the_source_isnt_taken(cells: Cells):
    move = await cells.received()
    async with cells.here.worker.write() as tx:
        await tx.connection.execute(text('UPDATE permit SET subjects = \'["*", "more"]\''))
    task = asyncio.create_task(cells.carried_out(move))
    while not (await cells.move_there()).problem:
        await asyncio.sleep(0.02)
    assert (await cells.move_there()).problem.startswith("authority_broken: per_")
    await moves.order(cells.there.worker, cells.there.clock, TENANT, undo=True)
    assert (await task).state is MoveState.UNDONE
    assert (await cells.here.lease(cells.key)).status_code == 500  # of the altered row, and served here again
    async with cells.there.worker.read() as tx:
        assert await tx.moved_rows.is_empty(TENANT)


async def test_an_undone_move_leaves_the_tenant_where_it_was(cells: Cells):
    move = await cells.received()
    await moves.order(cells.there.worker, cells.there.clock, TENANT, undo=True)
    assert (await cells.carried_out(move)).state is MoveState.UNDONE
    assert (await cells.here.lease(cells.key)).status_code == 200
    again = await cells.received()
    assert (await cells.carried_out(again)).state is MoveState.DONE
    assert (await cells.there.lease(cells.key)).status_code == 200


async def test_an_offer_that_was_undone_reads_nothing_more(cells: Cells):
    offered = await cells.offered()
    here, named = (cells.here.store, cells.here.clock, TENANT), (offered.move_id, offered.secret)
    await moves.order(cells.here.worker, cells.here.clock, TENANT, undo=True)
    with fails(ErrorCode.UNAUTHENTICATED):
        await moves.authenticate(*here, *named)
    assert (await moves.authenticate(*here, *named, ends=True)).state is MoveState.UNDONE


@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_move_that_takes_longer_than_its_offer_is_good_can_be_undone(cells: Cells, is_paused: bool):
    """Else the tenant would be served nowhere."""
    offered = await cells.offered()
    here, named = (cells.here.store, cells.here.clock, TENANT), (offered.move_id, offered.secret)
    move = await moves.receive(cells.there.worker, cells.there.clock, offered, THERE)
    if is_paused:
        await moves.pause(cells.here.store, cells.here.clock, await moves.authenticate(*here, *named))
    for api in (cells.here, cells.there):
        api.clock.advance(8 * 86_400)
    if is_paused:
        assert (await moves.authenticate(*here, *named)).state is MoveState.PAUSED
    else:
        with fails(ErrorCode.UNAUTHENTICATED):
            await moves.authenticate(*here, *named)
    await moves.order(cells.there.worker, cells.there.clock, TENANT, undo=True)
    assert (await cells.carried_out(move)).state is MoveState.UNDONE
    async with cells.here.worker.read() as tx:
        assert (await tx.tenants.standing(TENANT)).phase is MovePhase.HERE


async def test_a_worker_that_was_followed_writes_no_older_row(cells: Cells):
    move = await cells.received()
    before = await cells.move_there()
    async with cells.there.worker.read() as tx:
        access = await tx.tenant_moves.access(before)
    await cells.carried_out(move)
    await cells.there.install(cells.connections[0], "at-newer")
    egress = Egress(EgressPolicy(allow=(cells.url.removeprefix("http://"),)))
    unused: Any = None  # it is refused before
    late = Copier(
        cells.there.worker,
        OtherCell(egress, before, access["secret"]),
        unused,
        before,
    )
    with pytest.raises(Failure) as refused:
        await late.copy(["connection"])
    assert refused.value.code is ErrorCode.NOT_FOUND


async def test_forgotten_rows_are_gone_and_callers_still_find_the_way(cells: Cells):
    await cells.carried_out(await cells.received())
    async with cells.here.worker.read() as tx:
        (left,) = await tx.tenant_moves.page(TENANT)
    assert (await cells.carried_out(left, cells.here)).state is MoveState.LEFT
    ordered = await moves.order(cells.here.worker, cells.here.clock, TENANT, undo=False)
    assert (await cells.carried_out(ordered, cells.here)).state is MoveState.DONE
    async with cells.here.worker.read() as tx:
        assert await tx.moved_rows.is_empty(TENANT)
    assert (await cells.here.lease(cells.key)).status_code == 421


async def test_an_offer_is_taken_only_by_a_cell_of_the_family(cells: Cells, tmp_path: Path):
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    async with running_api(stranger) as other:
        with pytest.raises(Failure, match="export-cell"):
            await moves.receive(other.worker, other.clock, await cells.offered(), THERE)
