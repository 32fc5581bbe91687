"""Questions of an operator about Temporal: the namespace, who polls our task queue, what time it is.

Each raises Failure TEMPORAL_UNAVAILABLE when Temporal doesn't answer it.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, PollWorkflowTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.temporal_link.namespace import get_retention, missing_search_attributes

_PROBE_QUEUE = "evergrant-doctor"  # nothing is ever put into it


@dataclass(frozen=True)
class TaskQueuePollers:
    """Identities (process and host) that polled in the last minutes."""

    workflows: tuple[str, ...]
    activities: tuple[str, ...]


async def retention(client: Client) -> timedelta | None:
    """How long the namespace keeps closed runs; None when there is no such namespace."""
    try:
        with _rpc_errors():
            return await get_retention(client)
    except _NamespaceNotFound:
        return None


async def lacking_search_attributes(client: Client) -> list[str]:
    """The search attributes that the namespace lacks; all of them when there is no such namespace."""
    try:
        with _rpc_errors():
            return await missing_search_attributes(client)
    except _NamespaceNotFound:
        return ["the namespace itself"]


async def pollers(client: Client, task_queue: str) -> TaskQueuePollers:
    """Who polls a task queue."""
    kinds = (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
    try:
        with _rpc_errors():
            found = [await _describe(client, task_queue, kind) for kind in kinds]
    except _NamespaceNotFound:
        return TaskQueuePollers((), ())
    return TaskQueuePollers(*(tuple(sorted({poller.identity for poller in each})) for each in found))


async def server_time(client: Client) -> datetime:
    """What time Temporal has, from the moment it notes for a poll of ours."""
    identity = f"doctor@{client.identity}"
    poll = asyncio.create_task(
        client.workflow_service.poll_workflow_task_queue(
            PollWorkflowTaskQueueRequest(
                namespace=client.namespace, task_queue=TaskQueue(name=_PROBE_QUEUE), identity=identity
            ),
            timeout=timedelta(seconds=4),
        )
    )
    try:
        with _rpc_errors():
            return await _poll_time(client, identity)
    except _NamespaceNotFound:
        raise _unavailable("the namespace doesn't exist") from None
    finally:
        poll.cancel()
        with suppress(asyncio.CancelledError, RPCError):
            await poll


async def _poll_time(client: Client, identity: str) -> datetime:
    while True:
        for poller in await _describe(client, _PROBE_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW):
            if poller.identity == identity:
                return poller.last_access_time.ToDatetime(tzinfo=UTC)
        await asyncio.sleep(0.02)


async def _describe(client: Client, task_queue: str, kind: TaskQueueType.ValueType) -> list[PollerInfo]:
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=kind
        )
    )
    return list(answer.pollers)


class _NamespaceNotFound(Exception):
    """There is no such namespace."""


@contextmanager
def _rpc_errors() -> Generator[None]:
    try:
        yield
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise _NamespaceNotFound from None
        raise _unavailable(f"it answers {error.status.name}") from None
    except RuntimeError as error:  # the SDK's core, when it can't connect
        raise _unavailable(type(error).__name__) from None


def _unavailable(why: str) -> Failure:
    return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"Temporal can't say: {why}")
