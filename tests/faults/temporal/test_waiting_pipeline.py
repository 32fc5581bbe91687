"""A pipeline that was told to wait for a person hears again, though the connection's run was started anew."""

import asyncio
from datetime import timedelta

from evergrant.temporal import TokenInbox, TokenNotReady
from temporalio import workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import connection_workflow_id
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error
from tests.faults.temporal.test_reconcile_restart import run_of, until_visible


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


async def test_a_restarted_run_notifies_the_pipelines_that_waited(place: Installation, idp: ScriptedProvider):
    connection = await place.connect(idp)
    await until_visible(place, [connection])
    idp.script(error("invalid_grant"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.GRANT_REJECTED
    client, name, queue = (
        place.parts.client,
        connection_workflow_id(TENANT, connection.id),
        f"pipeline-{connection.id}",
    )
    runner = UnsandboxedWorkflowRunner()  # this file imports what no sandbox can
    async with Worker(client, task_queue=queue, workflows=[WaitingPipeline], workflow_runner=runner):
        pipeline = await client.start_workflow(WaitingPipeline.run, name, id=queue, task_queue=queue)
        async with asyncio.timeout(PATIENCE_S):
            while await pipeline.query(WaitingPipeline.told) != ErrorCode.GRANT_REJECTED:
                await asyncio.sleep(0.05)
        first = await run_of(place, connection)
        for _ in range(2):  # and so does the run after that
            async with asyncio.timeout(PATIENCE_S):  # until Temporal's list has the newest run
                while not (
                    await place.parts.reconciler.reconcile_all(compare=False, older_than=timedelta(0))
                ).restarted:
                    await asyncio.sleep(0.05)
        assert await run_of(place, connection) != first
        integration = await place.integration_of(connection)
        await place.consent(idp, integration, connection)
        await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
        async with asyncio.timeout(PATIENCE_S):
            assert tuple(await pipeline.result()) == (ErrorCode.GRANT_REJECTED, 2)
