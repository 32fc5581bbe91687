"""Sends messages to workflows and starts them, for the API and the relay."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    Priority,
    QueryRejectCondition,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.base import Message
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.names import (
    TASK_QUEUE,
    QueryName,
    UpdateName,
    connection_workflow_id,
)
from evergrant_server.core.messages.work import CommandT, Job, ResultT
from evergrant_server.crypto import KeyRing
from evergrant_server.crypto.request_proof import prove_request
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.runs import WorkflowRuns, call_temporal, temporal_unavailable
from evergrant_server.temporal_link.start_requests import StartRequest

_MOST_TRIES = 5  # to get an id back from a foreign run


class TemporalLink(WorkflowRuns):
    """Sends messages to the workflows of one namespace. Every call has a time limit in seconds.

    Each raises Failure TEMPORAL_UNAVAILABLE when Temporal doesn't answer.
    """

    def __init__(self, client: Client, ring: KeyRing, clock: Clock, task_queue: str = TASK_QUEUE) -> None:
        super().__init__(client, task_queue)
        self._ring = ring
        self._clock = clock

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult:
        """Request a grant newer than the one that the caller has seen. Coalesce before calling.

        Raises Failure REFRESH_PENDING when it takes longer than `timeout` seconds, and
        TEMPORAL_UNAVAILABLE also when Temporal knows no such workflow.
        """
        workflow = connection_workflow_id(tenant, connection_id)
        update = self._connection_handle(tenant, connection_id).execute_update(
            UpdateName.ENSURE_FRESH,
            self._proven(request, workflow, UpdateName.ENSURE_FRESH),
            result_type=EnsureFreshResult,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await update
        except WorkflowUpdateFailedError as rejection:
            return _freshness_from_rejection(rejection, request)
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCTimeoutOrCancelledError):
            raise Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0) from None
        except (RPCError, RuntimeError) as error:
            raise temporal_unavailable(error) from None

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None:
        """Query the connection's workflow; None when no run of it is open.

        Raises Failure TEMPORAL_UNAVAILABLE also when no worker answers the query in time.
        """
        query = self._connection_handle(tenant, connection_id).query(
            QueryName.DESCRIBE,
            result_type=ConnectionDescription,
            reject_condition=QueryRejectCondition.NOT_OPEN,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await query
        except WorkflowQueryRejectedError:
            return None
        except (RPCError, WorkflowQueryFailedError, RuntimeError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise temporal_unavailable(error) from None

    async def describe_key_rotation(self, workflow: str, timeout: float = 2.0) -> KeyRotationStart | None:
        """Query the newest rotation of keys under this id, also one that is done; None when there was none.

        Raises Failure TEMPORAL_UNAVAILABLE also when no worker answers the query in time.
        """
        query = self._client.get_workflow_handle(workflow).query(
            QueryName.DESCRIBE_KEY_ROTATION,
            result_type=KeyRotationStart,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await query
        except (RPCError, WorkflowQueryFailedError, RuntimeError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise temporal_unavailable(error) from None

    async def signal(self, workflow: str, name: str, payload: dict[str, Any]) -> None:
        """Signal a workflow by id. Raises WorkflowNotRunning as well."""
        handle = self._client.get_workflow_handle(workflow)
        await call_temporal(handle.signal(name, payload, rpc_timeout=timedelta(seconds=10)))

    async def run_job(self, job: Job[CommandT, ResultT], request: CommandT, timeout: float) -> ResultT:
        """Have a worker do a job, or join the run that does it already, and wait for the result."""
        workflow_id = job.workflow_id(request)
        start = start_requests.job(job, self._proven(request, workflow_id, job.name))
        limit = {"execution_timeout": timedelta(seconds=timeout)}
        run_id = await self.start(replace(start, options={**start.options, **limit}))
        result_type = cast("type[ResultT]", job.result)
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id, result_type=result_type)
        return await call_temporal(handle.result())

    async def start(self, request: StartRequest) -> str | None:
        """Start a workflow, unless its id is running; returns the run that has the id.

        None when a closed run has used up the id. A foreign or a stuck run has no right to it: it is
        terminated, and what it has used up isn't. Raises Failure TEMPORAL_UNAVAILABLE also when the id is
        taken again each time.
        """
        options = dict(request.options)
        for _ in range(_MOST_TRIES):
            started = await self._start(request, options)
            if started is not None:
                return started
            run = await self.usable_run(request.workflow_id)
            if run is None or run.running:  # None: it has gone meanwhile
                if run is not None:
                    return run.run_id
            elif not (run.is_foreign or run.is_stuck):
                return None
            options["id_reuse_policy"] = WorkflowIDReusePolicy.ALLOW_DUPLICATE
        why = f"{request.workflow_id} is taken again and again"
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, why, retry_after=1.0)

    async def _start(self, request: StartRequest, options: Mapping[str, Any]) -> str | None:
        """The new run; None when the id was taken. One that is signalled may be an old one, so None too."""
        signals = "start_signal" in options
        policy = WorkflowIDConflictPolicy.USE_EXISTING if signals else WorkflowIDConflictPolicy.FAIL
        try:
            handle = await call_temporal(
                self._client.start_workflow(
                    request.workflow,
                    request.argument,
                    id=request.workflow_id,
                    task_queue=self._task_queue,
                    priority=_fair(request.argument),
                    static_summary=request.summary,
                    **{"id_conflict_policy": policy, **options},
                )
            )
        except WorkflowAlreadyStartedError:
            return None
        return None if signals else handle.result_run_id

    def _proven(self, message: CommandT, workflow_id: str, name: str) -> CommandT:
        context = prove_request(self._ring, message.context, workflow_id, name, self._clock.now())
        return message.__replace__(context=context)

    def _connection_handle(self, tenant: Tenant, connection_id: ConnectionId) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(connection_workflow_id(tenant, connection_id))


def _fair(argument: Message) -> Priority:
    """The tasks of a run, and the activities that it schedules, are taken in turn with other tenants'."""
    return Priority(fairness_key=getattr(argument, "tenant", None))


def _freshness_from_rejection(
    rejection: WorkflowUpdateFailedError, request: EnsureFresh
) -> EnsureFreshResult:
    """The validator's rejection as a result. It names a code: the store already has the answer."""
    cause = rejection.cause
    name = cause.type if isinstance(cause, ApplicationError) else None
    if name == ErrorCode.STORE_CONFLICT:
        return EnsureFreshResult(generation=request.seen_generation + 1)
    if name in set(ErrorCode):
        return EnsureFreshResult(generation=request.seen_generation, problem=ErrorCode(name))
    raise Failure(ErrorCode.INTERNAL, "the workflow rejected an update without a code") from None
