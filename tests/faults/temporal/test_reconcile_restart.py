"""`reconcile --restart-older-than`, and a pass that another worker goes on with."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.testing import ActivityEnvironment

from activities.maintenance.history import HistoryActivities
from activities.maintenance.reconcile import ReconcileActivities
from evergrant_server.cli import operate
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.messages.maintenance import ReconcileRequest, ReconcileResult
from evergrant_server.temporal_link.runs import RunningWorkflow
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, hold_answer
from tests.fakes.temporal import runs

LONG_AGO = timedelta(days=30)


async def run_of(place: Installation, connection: Connection) -> str | None:
    handle = place.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id))
    return (await handle.describe()).run_id


async def until_visible(place: Installation, connections: list[Connection]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(await place.parts.link.running_connections()) < len(connections):
            await asyncio.sleep(0.05)


async def test_runs_that_are_older_start_anew_and_their_connections_notice_nothing(
    place: Installation, idp: ScriptedProvider, capsys: pytest.CaptureFixture[str]
):
    connection = await place.connect(idp)
    await until_visible(place, [connection])
    first = await run_of(place, connection)
    await operate.reconcile(place.parts.settings, LONG_AGO, False)
    assert "0 restarted" in capsys.readouterr().out
    assert await run_of(place, connection) == first
    await operate.reconcile(place.parts.settings, timedelta(0), False)
    assert "1 restarted, 0 left for later" in capsys.readouterr().out
    assert await run_of(place, connection) != first
    fresh = await place.ensure_fresh(connection, 1)
    assert (fresh.problem, fresh.generation) == (None, 2)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


@pytest.mark.parametrize("older_than", [None, timedelta(0)])
async def test_a_run_that_has_ended_is_followed_though_the_list_of_runs_still_has_it(
    place: Installation, idp: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, older_than: timedelta | None
):
    """A run that has ended answers questions too, and the list lags behind."""
    connection = await place.connect(idp)
    await until_visible(place, [connection])
    listed = await place.parts.link.running_connections()
    assert (await place.parts.link.describe(TENANT, connection.id)) is not None
    await place.terminate(connection)
    assert (await place.parts.link.describe(TENANT, connection.id)) is None

    async def as_before() -> dict[str, RunningWorkflow]:
        return listed

    monkeypatch.setattr(place.parts.link, "running_connections", as_before)
    done = await place.parts.reconciler.reconcile_all(older_than=older_than)
    assert (done.started, done.restarted, done.unanswered) == (1, 0, ())
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_run_whose_provider_may_still_answer_is_left_and_named(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp)
    await until_visible(place, [connection])
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    refreshing = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    first = await run_of(place, connection)
    done = await place.parts.reconciler.reconcile_all(compare=False, older_than=timedelta(0))
    assert (done.restarted, done.awaiting_provider) == (0, (connection.id,))
    gate.set()
    assert (await refreshing).generation == 2
    assert await run_of(place, connection) == first


async def test_a_pass_goes_on_where_the_worker_before_was(place: Installation, idp: ScriptedProvider):
    """What its heartbeat said is done is not done again, and is counted."""
    now, integration = place.parts.clock.now(), await place.integration(idp)
    alone = [
        Connection(
            tenant=TENANT,
            id=ConnectionId(new_id("con")),
            integration_id=integration.id,
            integration=integration.name,
            provider=integration.provider,
            subject=f"user-{number}",
            created_at=now,
            changed_at=now,
            consent_deadline=now + timedelta(hours=1),
        )
        for number in range(3)
    ]
    async with place.store.write() as tx:
        for it in alone:  # without their workflows
            await tx.connections.add(it)
    passed, second, third = sorted(it.id for it in alone)
    upkeep = ReconcileActivities(
        place.store,
        place.parts.reconciler,
        HistoryActivities(place.store, place.parts.link, place.parts.clock),
        place.parts.clock,
        timedelta(days=30),
    )
    environment = ActivityEnvironment()
    before = ReconcileResult(live=1, started=1, after=passed)
    environment.info = replace(environment.info, heartbeat_details=[before])
    told: list[ReconcileResult] = []
    environment.on_heartbeat = lambda *details: told.extend(details)
    done = await environment.run(upkeep.reconcile, ReconcileRequest())
    assert (done.live, done.started, done.after) == (3, 3, None)
    assert told[0].after in (passed, third)
    running = [
        await runs(place.parts.link, connection_workflow_id(TENANT, it)) for it in (passed, second, third)
    ]
    assert running == [False, True, True]
