"""The real parts that other tests stand on start here, do what is asked and end by their pid."""

import os
from datetime import timedelta

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

from tests.e2e.servers.sleeping_workflow import Naps
from tests.fakes.temporal import NoTemporal, TemporalServer, running_temporal


async def test_the_dev_server_keeps_its_workflows_and_ends_by_pid(tmp_path):
    async with running_temporal(tmp_path) as server:
        await server.keep_closed_runs(timedelta(days=365))
        client = await server.client()
        await client.start_workflow(Naps.run, 1, id="nap", task_queue="nobody")
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    async with running_temporal(tmp_path) as server:
        client = await server.client()
        assert (await client.get_workflow_handle("nap").describe()).workflow_type == "Naps"
        namespace = await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace="default")
        )
        assert namespace.config.workflow_execution_retention_ttl.ToTimedelta() == timedelta(days=365)


async def test_a_dev_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "temporal.db").write_text("this is no database, and long enough to be looked at" * 20)
    with pytest.raises(NoTemporal, match="did not come up"):
        await TemporalServer.start(tmp_path)
