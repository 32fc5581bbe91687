"""What outlives a run: its connection, pipelines that wait, its history; and `reconcile` between two runs."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest
from evergrant.temporal import TokenInbox, TokenNotReady
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from evergrant_server.cli import operate
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.temporal_link.runs import RunningWorkflow, WorkflowNotRunning
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.platform.observations import run_id
from tests.fakes.providers.scripted_provider import error

LONG_AGO = timedelta(days=30)


async def run_of(place: Installation, connection: Connection) -> str | None:
    handle = place.workflow(connection)
    return (await handle.describe()).run_id


async def listed_runs(place: Installation, connection: Connection) -> dict[str, RunningWorkflow]:
    return await place.parts.link.running_connections([connection_workflow_id(TENANT, connection.id)])


async def until_visible(place: Installation, connection: Connection) -> None:
    """Temporal lists the connection's run."""
    await eventually(partial(listed_runs, place, connection))


async def test_runs_that_are_older_start_anew_and_their_connections_notice_nothing(
    place: Installation, capsys: pytest.CaptureFixture[str]
):
    connection = await place.connect()
    await until_visible(place, connection)
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
    place: Installation, monkeypatch: pytest.MonkeyPatch, older_than: timedelta | None
):
    """A run that has ended answers questions too, and the list lags behind."""
    connection = await place.connect()
    await until_visible(place, connection)
    listed = await listed_runs(place, connection)
    assert (await place.described(connection)) is not None
    await place.terminate(connection)
    assert (await place.described(connection)) is None

    async def as_before(_: object) -> dict[str, RunningWorkflow]:
        return listed

    monkeypatch.setattr(place.parts.link, "running_connections", as_before)
    done = await place.parts.reconciler.reconcile_all(older_than=older_than)
    assert (done.started, done.restarted, done.unanswered.first) == (1, 0, ())
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_run_whose_provider_may_still_answer_is_left_and_named(place: Installation):
    connection = await place.connect()
    await until_visible(place, connection)
    async with place.idp.in_flight(place.ensure_fresh(connection, 1)) as refreshing:
        first = await run_of(place, connection)
        done = await place.parts.reconciler.reconcile_all(compare=False, older_than=timedelta(0))
        assert (done.restarted, done.awaiting_provider.first) == (0, (connection.id,))
    assert (await refreshing).generation == 2
    assert await run_of(place, connection) == first


@workflow.defn(name="WaitingPipeline")
class WaitingPipeline(TokenInbox):
    """Is told no, and waits until it hears again."""

    def __init__(self) -> None:
        self._told = ""

    @workflow.run
    async def run(self, connection: str) -> tuple[str, int]:
        try:
            await self.token_for(connection, app="crm-sync")
        except TokenNotReady as no:
            self._told = no.code if no.again else ""
        return self._told, (await self.token_repaired(connection)).generation

    @workflow.query
    def told(self) -> str:
        return self._told


async def test_a_restarted_run_notifies_the_pipelines_that_waited(place: Installation):
    connection = await place.connect()
    await until_visible(place, connection)
    place.idp.script(error("invalid_grant"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.GRANT_REJECTED
    client, name, queue = (
        place.parts.client,
        connection_workflow_id(TENANT, connection.id),
        f"pipeline-{connection.id}",
    )
    runner = UnsandboxedWorkflowRunner()  # this file imports what no sandbox can
    async with Worker(client, task_queue=queue, workflows=[WaitingPipeline], workflow_runner=runner):
        pipeline = await client.start_workflow(WaitingPipeline.run, name, id=queue, task_queue=queue)
        await eventually(
            lambda: pipeline.query(WaitingPipeline.told), lambda it: it == ErrorCode.GRANT_REJECTED
        )
        first = await run_of(place, connection)
        for _ in range(2):  # and so does the run after that
            await eventually(  # until Temporal's list has the newest run
                lambda: place.parts.reconciler.reconcile_all(compare=False, older_than=timedelta(0)),
                lambda it: it.restarted,
            )
        assert await run_of(place, connection) != first
        await place.consent(connection)
        await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
        async with asyncio.timeout(PATIENCE_S):
            assert tuple(await pipeline.result()) == (ErrorCode.GRANT_REJECTED, 2)


@pytest.mark.soak
async def test_history_outlives_temporal(place: Installation):
    """The closed runs are deleted; the exported history still tells the whole life."""
    connection = await place.connect()
    await place.ensure_fresh(connection, 1)
    await place.revoke(connection)
    await place.until_exported(connection)
    workflow = connection_workflow_id(TENANT, connection.id)
    await place.parts.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow)
        )
    )
    await eventually(lambda: run_id(place.parts.link, workflow), lambda it: it is None)
    with pytest.raises(WorkflowNotRunning):
        await place.parts.link.history(workflow)
    async with place.store.read() as tx:
        (run,) = await tx.histories.of_connection(TENANT, connection.id)
    told = [event["eventType"].removeprefix("EVENT_TYPE_") for event in run.events]
    assert (told[0], told[-1]) == ("WORKFLOW_EXECUTION_STARTED", "WORKFLOW_EXECUTION_COMPLETED")
    assert "WORKFLOW_EXECUTION_SIGNALED" in told
    scheduled = [e.get("activityTaskScheduledEventAttributes") for e in run.events]
    assert [it["activityType"]["name"] for it in scheduled if it] == [
        "exchange_code",
        "refresh_grant",
        "begin_revocation",
        "revoke_grant",
        "export_run_history",
    ]
