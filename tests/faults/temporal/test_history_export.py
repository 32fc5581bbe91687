"""Temporal forgets closed runs; the exported history still tells the whole life."""

import asyncio

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest

from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.temporal_link.calls import WorkflowNotRunning
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import run_id


async def test_history_outlives_temporal(place: Installation, idp: ScriptedProvider):
    """The closed runs are deleted; the exported history still tells the whole life."""
    connection = await place.connect(idp)
    await place.ensure_fresh(connection, 1)
    await place.revoke(connection)
    await place.until_exported(connection)
    workflow = connection_workflow_id(TENANT, connection.id)
    await place.parts.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow)
        )
    )
    async with asyncio.timeout(PATIENCE_S):
        while await run_id(place.parts.link, workflow) is not None:
            await asyncio.sleep(0.1)
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
