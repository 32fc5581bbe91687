"""The doctor's questions to Temporal: which workers poll a task queue, and what time it is.

Each raises Failure TEMPORAL_UNAVAILABLE when Temporal doesn't answer.
"""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, PollWorkflowTaskQueueRequest
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.temporal_link.runs import find_in_temporal

_LATE = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.UNAVAILABLE)
_PROBE_QUEUE = "evergrant-doctor"  # nothing is ever put into it


async def pollers(client: Client, task_queue: str) -> list[set[str]]:
    """Who (process and host) polled a task queue in the last minutes: for workflows, and for activities."""
    kinds = (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
    of_kinds = [await _describe(client, task_queue, kind) or [] for kind in kinds]
    return [{poller.identity for poller in pollers} for pollers in of_kinds]


async def worker_answers(client: Client, task_queue: str, within: timedelta) -> bool | None:
    """Whether a worker of the queue answers a query to the newest run there; None where there was no run.

    Pollers don't say so: Temporal shows one that is stopped for minutes.
    """
    async for run in client.list_workflows(f"TaskQueue = '{task_queue}'", limit=1):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        try:
            await handle.query("__stack_trace", rpc_timeout=within)
        except RPCError as error:
            return error.status not in _LATE
        except (WorkflowQueryFailedError, RuntimeError):  # a worker's own answer, whatever it says
            return True
        return True
    return None


async def server_time(client: Client) -> datetime:
    """Temporal's time, read from the timestamp that it notes for a poll of ours."""
    identity = f"doctor@{client.identity}"
    request = PollWorkflowTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=_PROBE_QUEUE), identity=identity
    )
    poll = asyncio.create_task(
        client.workflow_service.poll_workflow_task_queue(request, timeout=timedelta(seconds=4))
    )
    try:
        return await _poll_time(client, identity)
    finally:
        poll.cancel()
        with suppress(asyncio.CancelledError, RPCError):
            await poll


async def _poll_time(client: Client, identity: str) -> datetime:
    while True:
        of_probe = await _describe(client, _PROBE_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
        if of_probe is None:
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, "the namespace doesn't exist")
        for poller in of_probe:
            if poller.identity == identity:
                return poller.last_access_time.ToDatetime(tzinfo=UTC)
        await asyncio.sleep(0.02)


async def _describe(
    client: Client, task_queue: str, kind: TaskQueueType.ValueType
) -> list[PollerInfo] | None:
    """The pollers of a task queue; None when there is no such namespace."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=kind
    )
    answer = await find_in_temporal(client.workflow_service.describe_task_queue(request))
    return None if answer is None else list(answer.pollers)
