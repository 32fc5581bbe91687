"""Calls to Temporal that raise our failures, and what they read of a run: is it open, state, history."""

import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.jobs import workflow_type_of
from evergrant_server.core.messages.names import TASK_QUEUE, SearchAttribute, WorkflowName
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link.stories import MayRead, StoryCodec, is_sealed

T = TypeVar("T")

log = logging.getLogger("evergrant.relay")

_PROBLEMS = SearchAttributeKey.for_keyword_list("TemporalReportedProblems")
_MOST_TRIES_OF_A_TASK = 5  # the first is repeated at once, the later ones after up to ten minutes


class WorkflowNotRunning(Exception):
    """Temporal has no open run of this workflow, so it can't receive a message."""


async def call_temporal(call: Awaitable[T]) -> T:
    """Await a call of the SDK. Raises WorkflowNotRunning, or Failure TEMPORAL_UNAVAILABLE."""
    try:
        return await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise WorkflowNotRunning from None
        raise temporal_unavailable(error) from None
    except WorkflowFailureError as error:  # the workflow timed out or was terminated
        raise temporal_unavailable(error.cause or error) from None
    except RuntimeError as error:
        raise temporal_unavailable(error) from None


async def find_in_temporal(call: Awaitable[T]) -> T | None:
    """Await a call of the SDK; None when the object doesn't exist. Raises Failure TEMPORAL_UNAVAILABLE."""
    try:
        return await call_temporal(call)
    except WorkflowNotRunning:
        return None


def temporal_unavailable(error: BaseException) -> Failure:
    """The failure for our callers. It names only the kind of error: its text may quote a secret."""
    status = error.status.name if isinstance(error, RPCError) else type(error).__name__
    return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"Temporal's answer: {status}", retry_after=1.0)


@dataclass(frozen=True)
class RunningWorkflow:
    """An open run. `state` is its search attribute.

    `is_failing`: its workflow task fails again and again, by a server that reports it (1.30 and later).
    """

    started_at: datetime
    state: str | None
    is_failing: bool = False


@dataclass(frozen=True)
class NewestRun:
    """A workflow's newest run, open or closed. `state` is its search attribute.

    `is_foreign`: it is of another type than its id says, or of another task queue: it handles none of our
    messages. `is_stuck`: workers have failed its task again and again, so it handles none either.
    """

    run_id: str
    running: bool
    state: str | None
    is_foreign: bool = False
    is_stuck: bool = False


class WorkflowRuns:
    """Reads the runs of one namespace. Raises Failure TEMPORAL_UNAVAILABLE."""

    def __init__(self, client: Client, task_queue: str = TASK_QUEUE) -> None:
        self._client = client
        self._task_queue = task_queue

    async def ready(self) -> bool:
        """True when Temporal answers within two seconds."""
        try:
            return await self._client.service_client.check_health(timeout=timedelta(seconds=2))
        except (RPCError, RuntimeError):
            return False

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """Every event of a run (the newest, without `run_id`), as Temporal's JSON, its story opened.

        Raises Failure KEY_UNAVAILABLE, STORE_UNAVAILABLE as well.
        """
        return await self.open_events(await self.sealed_history(workflow, run_id))

    async def sealed_history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """As `history`, with what is sealed as it is."""
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        history = await call_temporal(handle.fetch_history())
        return history.to_json_dict()["events"]

    async def open_events(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The events with what is sealed opened, as far as its keys are there. Raises as `history`."""
        codec = self._client.data_converter.payload_codec
        return await codec.open_events(events) if isinstance(codec, StoryCodec) else list(events)

    async def read_payloads(
        self, payloads: Sequence[dict[str, Any]], may_read: MayRead
    ) -> list[dict[str, Any]]:
        """Payloads of Temporal's JSON as people see them, who may read these stories.

        Raises as `history`, and ValueError for what is no payload.
        """
        codec = self._client.data_converter.payload_codec
        if not isinstance(codec, StoryCodec):
            return list(payloads)
        return [await codec.read(payload, may_read) for payload in payloads]

    async def newest_generation(self, workflow: str, run_id: str | None = None) -> int | None:
        """The highest generation in a run's history, 0 when it has none; None: it can't be read."""
        events = await self.history(workflow, run_id)
        payloads = [payload for event in events for payload in _payloads(event)]
        if any(is_sealed(payload) for payload in payloads):
            return None
        return max((_generation_in(payload) for payload in payloads), default=0)

    async def newest_run(self, workflow: str) -> NewestRun | None:
        """The newest run, or None when Temporal has none. Reads Temporal itself, not visibility."""
        run = await self._describe_newest(workflow)
        if run is None:
            return None
        owner = workflow_type_of(workflow)
        return NewestRun(
            run.run_id,
            run.close_time is None,
            _state_attribute(run),
            is_foreign=owner is not None and (owner, self._task_queue) != (run.workflow_type, run.task_queue),
            is_stuck=run.raw_description.pending_workflow_task.attempt >= _MOST_TRIES_OF_A_TASK,
        )

    async def usable_run(self, workflow: str) -> NewestRun | None:
        """As `newest_run`; a foreign or a stuck one is terminated, that run and no other (ADR 0029, 0071).

        Its signals would be lost, and as long as it has the id no other run can begin.
        """
        run = await self.newest_run(workflow)
        if run is None or not run.running or not (run.is_foreign or run.is_stuck):
            return run
        event = LogEvent.FOREIGN_WORKFLOW if run.is_foreign else LogEvent.STUCK_WORKFLOW
        log_event(log, logging.ERROR, event, f"run {run.run_id}", object=workflow)
        why = "this id belongs to Evergrant" if run.is_foreign else "its workflow task fails again and again"
        with suppress(WorkflowNotRunning):  # it has closed meanwhile
            await self.terminate_run(workflow, run.run_id, why)
        return replace(run, running=False)

    async def terminate_run(self, workflow: str, run_id: str, reason: str) -> None:
        """Terminate this run and no other. Raises WorkflowNotRunning as well."""
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        await call_temporal(handle.terminate(reason=reason, rpc_timeout=timedelta(seconds=10)))

    async def is_idle(self, workflow: str) -> bool:
        """True while the newest run is open and has neither an activity nor a workflow task pending."""
        run = await self._describe_newest(workflow)
        if run is None:
            return False
        busy = run.raw_description.pending_activities or run.raw_description.HasField("pending_workflow_task")
        return run.close_time is None and not busy

    async def running_connections(self, workflows: Sequence[str]) -> dict[str, RunningWorkflow]:
        """Those of these connections' workflows that run, from visibility, which lags: a missing one may run.

        The ids stand in the query: some hundreds at a time.
        """
        ids = ", ".join(f"'{workflow}'" for workflow in workflows)
        which = f"WorkflowType = '{WorkflowName.CONNECTION}' AND WorkflowId IN ({ids})"
        return {
            run.id: RunningWorkflow(run.start_time, _state_attribute(run), _reports_problems(run))
            async for run in self._listed(self._own_open_runs(which))
        }

    async def open_connections(self, state: str | None = None) -> int:
        """How many runs of connections are open, those in `state` if it is given; from visibility."""
        which = f"WorkflowType = '{WorkflowName.CONNECTION}'"
        if state is not None:
            which += f" AND {SearchAttribute.STATE} = '{state}'"
        return (await call_temporal(self._client.count_workflows(self._own_open_runs(which)))).count

    async def failing_workflows(self) -> AsyncIterator[str]:
        """Ids of open runs whose workflow task fails again and again, from visibility.

        None at a server that doesn't report them (before 1.30): there a stuck run is noticed once a message
        is for it, or its work is overdue.
        """
        query = self._own_open_runs("TemporalReportedProblems IS NOT NULL")
        try:
            async for run in self._client.list_workflows(query, page_size=1000):
                yield run.id
        except RPCError as error:
            if error.status is not RPCStatusCode.INVALID_ARGUMENT:
                raise temporal_unavailable(error) from None
        except RuntimeError as error:
            raise temporal_unavailable(error) from None

    def _own_open_runs(self, which: str) -> str:
        return f"{which} AND ExecutionStatus = 'Running' AND TaskQueue = '{self._task_queue}'"

    async def closed_connections(self, since: datetime | None) -> AsyncIterator[tuple[str, str]]:
        """Workflow and run id of connections whose run closed since then, as far as Temporal retains them."""
        query = f"WorkflowType = '{WorkflowName.CONNECTION}' AND ExecutionStatus != 'Running'"
        if since is not None:
            query += f" AND CloseTime >= '{since.isoformat()}'"
        async for run in self._listed(query):
            yield run.id, run.run_id

    async def ended_erasures(self) -> AsyncIterator[str]:
        """Ids of the workflows of erasures that were carried out, as far as Temporal retains them."""
        which = f"WorkflowType = '{WorkflowName.ERASURE}' AND ExecutionStatus = 'Completed'"
        async for run in self._listed(f"{which} AND TaskQueue = '{self._task_queue}'"):
            yield run.id

    async def is_closed(self, workflow: str, run_id: str) -> bool:
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        return (await call_temporal(handle.describe())).close_time is not None

    async def _describe_newest(self, workflow: str) -> WorkflowExecutionDescription | None:
        return await find_in_temporal(
            self._client.get_workflow_handle(workflow).describe(rpc_timeout=timedelta(seconds=10))
        )

    async def _listed(self, query: str) -> AsyncIterator[WorkflowExecution]:
        """The runs that visibility has, a page in memory at a time."""
        runs = self._client.list_workflows(query, page_size=1000)
        while (run := await call_temporal(anext(runs, None))) is not None:
            yield run


def _reports_problems(run: WorkflowExecution) -> bool:
    return run.typed_search_attributes.get(_PROBLEMS) is not None


def _state_attribute(run: WorkflowExecution) -> str | None:
    return run.typed_search_attributes.get(SearchAttributeKey.for_keyword(SearchAttribute.STATE))


def _payloads(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The input or result of a history event."""
    for attributes in (value for name, value in event.items() if name.endswith("EventAttributes")):
        payloads = attributes.get("result") or attributes.get("input") or {}
        return payloads.get("payloads") or []
    return []


def _generation_in(payload: dict[str, Any]) -> int:
    try:
        content = json.loads(base64.b64decode(payload["data"]))
    except (KeyError, binascii.Error, ValueError):
        return 0
    if not isinstance(content, dict):
        return 0
    start_state = content.get("state")  # of a ConnectionStart; a result has the generation beside its state
    facts = start_state if isinstance(start_state, dict) else content
    generation = facts.get("generation")
    return generation if isinstance(generation, int) else 0
