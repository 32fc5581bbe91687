"""A definition's rollout; and retries of failing connections, after a change of their integration or app."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.definition import DefinitionState
    from evergrant_server.core.messages import integrations as m
    from evergrant_server.core.messages import jobs
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import runs

_TIME_TO_DECIDE = timedelta(days=30)


@workflow.defn(name=WorkflowName.DEFINITION_ROLLOUT)
class DefinitionRolloutWorkflow:
    """Checks by machine, an admin's decision, then stages that are evaluated.

    Owns the order of the steps; the definition, findings and decision are in the store.
    """

    @runs.init
    def __init__(self, start: m.RolloutStart) -> None:
        self._start = start
        self._context = start.context  # of the newest command
        self._decided = False
        self._roll_back: str | None = None

    @workflow.run
    async def run(self, start: m.RolloutStart) -> m.RolloutResult:
        result = await runs.call(jobs.CHECK_DEFINITION, m.DefinitionCall(**self._call()))
        if result.state is DefinitionState.WAITING:
            self._decided = self._decided or result.decided  # before this run, which may not be the first
            result = await self._decision()
        while result.state is DefinitionState.STAGED:
            result = await self._stage(result)
        return m.RolloutResult(state=result.state)

    async def _decision(self) -> m.DefinitionResult:
        overdue = False
        workflow.set_current_details("an admin decides")
        try:
            await workflow.wait_condition(
                lambda: self._decided, timeout=_TIME_TO_DECIDE, timeout_summary="reject it undecided"
            )
        except TimeoutError:
            overdue = True
        return await runs.call(
            jobs.APPLY_DEFINITION_DECISION, m.DefinitionCall(**self._call(), overdue=overdue)
        )

    async def _stage(self, result: m.DefinitionResult) -> m.DefinitionResult:
        seen = f"{result.succeeded} refreshes worked, {result.failed} only with the version before"
        held = " (no evidence yet: it is held)" if result.next_check_s is not None else ""
        workflow.set_current_details(f"serves {result.share:.0%} of the connections: {seen}{held}")
        with suppress(TimeoutError):  # the counts decide
            await workflow.wait_condition(
                lambda: self._roll_back is not None,
                timeout=result.next_check_s or self._start.check_interval_s,
                timeout_summary="evaluate the rollout stage",
            )
        return await runs.call(
            jobs.EVALUATE_ROLLOUT, m.DefinitionCall(**self._call(), roll_back=self._roll_back)
        )

    @workflow.signal(name=SignalName.DEFINITION_DECIDED)
    def decided(self, signal: m.DefinitionDecided) -> None:
        self._decided, self._context = True, signal.context

    @workflow.signal(name=SignalName.ROLL_BACK_DEFINITION)
    def roll_back(self, signal: m.RollBackDefinition) -> None:
        self._roll_back, self._context = signal.reason, signal.context

    def _call(self) -> dict[str, Any]:
        """The fields of a DefinitionCall."""
        return {
            "tenant": self._start.tenant,
            "definition_id": self._start.definition_id,
            "context": self._context,
            "provenance": runs.provenance(),
        }


@workflow.defn(name=WorkflowName.RETRY_CONNECTIONS)
class RetryConnectionsWorkflow:
    """A worker tells failing connections page by page. One workflow for each changed row: changes that come
    during a walk are followed by one more walk, however many they are.
    """

    @runs.init
    def __init__(self, request: m.RetryConnections) -> None:
        self._newest = request
        self._has_more = True

    @workflow.run
    async def run(self, request: m.RetryConnections) -> m.RetryConnectionsResult:
        result = m.RetryConnectionsResult()
        while self._has_more:
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._newest)
            self._has_more = False
            result = await runs.call(jobs.RETRY_CONNECTIONS, self._newest)
        return result

    @workflow.signal(name=SignalName.RETRY_CONNECTIONS)
    def retry(self, signal: m.RetryConnections) -> None:
        if signal.id != self._newest.id:  # the one that starts a run comes as its argument too
            self._newest, self._has_more = signal, True
