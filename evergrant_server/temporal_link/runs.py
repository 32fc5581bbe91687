"""What Temporal says of runs: whether there is one, how it stands, what happened in it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from temporalio.client import WorkflowExecution, WorkflowExecutionDescription
from temporalio.common import SearchAttributeKey

from evergrant_server.core.messages import search_attributes
from evergrant_server.core.messages.connection import CONNECTION_WORKFLOW
from evergrant_server.temporal_link.calls import TemporalCalls, WorkflowNotRunning


@dataclass(frozen=True)
class RunningWorkflow:
    """When a run began, and the state that it shows."""

    started_at: datetime
    state: str | None


@dataclass(frozen=True)
class NewestRun:
    run_id: str
    running: bool
    state: str | None  # the last one it showed


@dataclass(frozen=True)
class ClosedRun:
    """One run that has ended, however it did."""

    workflow_id: str
    run_id: str


class WorkflowRuns(TemporalCalls):
    """Looks at runs and changes none."""

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """Every event of a run (the newest, without `run_id`), as Temporal's JSON."""
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        history = await self._call(handle.fetch_history())
        return history.to_json_dict()["events"]

    async def current_run(self, workflow: str) -> str | None:
        """The id of the newest run, or None when Temporal has none."""
        found = await self._describe_newest(workflow)
        return None if found is None else found.run_id

    async def newest_run(self, workflow: str) -> NewestRun | None:
        """The newest run, or None when Temporal has none: from Temporal itself, not from visibility."""
        found = await self._describe_newest(workflow)
        if found is None:
            return None
        return NewestRun(found.run_id, found.close_time is None, _state_attribute(found))

    async def is_idle(self, workflow: str) -> bool:
        """True while the newest run waits for a message or a time, and for no activity."""
        found = await self._describe_newest(workflow)
        if found is None:
            return False
        busy = found.raw_description.pending_activities or found.raw_description.HasField(
            "pending_workflow_task"
        )
        return found.close_time is None and not busy

    async def is_running(self, workflow: str) -> bool:
        """True while the newest run of this workflow is open."""
        found = await self._describe_newest(workflow)
        return found is not None and found.close_time is None

    async def running_connections(self) -> dict[str, RunningWorkflow]:
        """Running connection workflows by id, as visibility has them.

        Visibility lags behind: what is missing here may run all the same.
        """
        query = f"WorkflowType = '{CONNECTION_WORKFLOW}' AND ExecutionStatus = 'Running'"
        return {
            it.id: RunningWorkflow(it.start_time, _state_attribute(it))
            for it in await self._list_workflows(query)
        }

    async def closed_connections(self, since: datetime | None) -> list[ClosedRun]:
        """Runs of connection workflows that closed since then and are still kept by Temporal."""
        query = f"WorkflowType = '{CONNECTION_WORKFLOW}' AND ExecutionStatus != 'Running'"
        if since is not None:
            query += f" AND CloseTime >= '{since.isoformat()}'"
        return [ClosedRun(it.id, it.run_id) for it in await self._list_workflows(query)]

    async def is_closed(self, workflow: str, run_id: str) -> bool:
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        return (await self._call(handle.describe())).close_time is not None

    async def _describe_newest(self, workflow: str) -> WorkflowExecutionDescription | None:
        try:
            return await self._call(self._client.get_workflow_handle(workflow).describe())
        except WorkflowNotRunning:
            return None

    async def _list_workflows(self, query: str) -> list[WorkflowExecution]:
        async def every() -> list[WorkflowExecution]:
            return [it async for it in self._client.list_workflows(query, page_size=1000)]

        return await self._call(every())


def _state_attribute(found: WorkflowExecution) -> str | None:
    return found.typed_search_attributes.get(SearchAttributeKey.for_keyword(search_attributes.STATE))
