"""Waits for a person's decision on a request for access or an agent's call; ends what a stopped agent left.

Owns the waiting and the order of the steps. Rows and decisions are in the store; `core` says what is due.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import access, agents
    from evergrant_server.core.messages.base import RequestContext
    from evergrant_server.core.messages.jobs import (
        ADVANCE_ACCESS_REQUEST,
        ADVANCE_AGENT_STOP,
        ADVANCE_CALL_APPROVAL,
    )
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import runs


class _DecisionProgress(Protocol):
    """What an activity says of the decision's row: its state, and the seconds to its next moment, if any."""

    @property
    def state(self) -> str: ...
    @property
    def next_s(self) -> float | None: ...


P = TypeVar("P", bound=_DecisionProgress)


class _DecisionWait:
    """Advances the row at each of its moments, and when a signal says that it has changed."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._changed = False

    def note_change(self, context: RequestContext) -> None:
        self._changed, self._context = True, context

    async def advance_until_done(
        self, advance: Callable[[RequestContext], Awaitable[P]], waits_for: str
    ) -> P:
        """What `advance` last returned, once no moment is left. `waits_for` is shown to operators."""
        while True:
            self._changed = False
            progress = await advance(self._context)
            if progress.next_s is None and not self._changed:
                return progress
            workflow.set_current_details(f"it is {progress.state}")
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._changed, timeout=progress.next_s, timeout_summary=waits_for
                )


@workflow.defn(name=WorkflowName.ACCESS_REQUEST)
class AccessRequestWorkflow:
    """Owns the waiting; the request, its decision and the permit are in the store."""

    @runs.init
    def __init__(self, request: access.AdvanceAccessRequest) -> None:
        self._wait = _DecisionWait(request.context)

    @workflow.run
    async def run(self, request: access.AdvanceAccessRequest) -> access.AccessRequestProgress:
        async def advance(context: RequestContext) -> access.AccessRequestProgress:
            return await runs.call(
                ADVANCE_ACCESS_REQUEST,
                access.AccessRequestCall(
                    tenant=request.tenant,
                    request_id=request.request_id,
                    context=context,
                    provenance=runs.provenance(),
                ),
            )

        waits_for = "the next reminder, the deadline, or the end of the access"
        return await self._wait.advance_until_done(advance, waits_for)

    @workflow.signal(name=SignalName.ADVANCE_ACCESS_REQUEST)
    def advance(self, signal: access.AdvanceAccessRequest) -> None:
        self._wait.note_change(signal.context)


@workflow.defn(name=WorkflowName.CALL_APPROVAL)
class CallApprovalWorkflow:
    """Owns the waiting; the call, its decision and its use are in the store."""

    @runs.init
    def __init__(self, approval: agents.AdvanceCallApproval) -> None:
        self._wait = _DecisionWait(approval.context)

    @workflow.run
    async def run(self, approval: agents.AdvanceCallApproval) -> agents.CallApprovalProgress:
        async def advance(context: RequestContext) -> agents.CallApprovalProgress:
            return await runs.call(
                ADVANCE_CALL_APPROVAL,
                agents.CallApprovalCall(
                    tenant=approval.tenant,
                    approval_id=approval.approval_id,
                    context=context,
                    provenance=runs.provenance(),
                ),
            )

        waits_for = "the next reminder, the escalation, or the deadline"
        return await self._wait.advance_until_done(advance, waits_for)

    @workflow.signal(name=SignalName.ADVANCE_CALL_APPROVAL)
    def advance(self, signal: agents.AdvanceCallApproval) -> None:
        self._wait.note_change(signal.context)


@workflow.defn(name=WorkflowName.AGENT_STOP)
class AgentStopWorkflow:
    """The agent's requests are refused already when it begins: this tidies up, and counts."""

    @workflow.run
    async def run(self, start: agents.AgentStopStart) -> agents.AgentStopProgress:
        while True:
            ids = {"tenant": start.tenant, "stop_id": start.stop_id, "context": start.context}
            request = agents.AgentStopCall(**ids, provenance=runs.provenance())
            progress = await runs.call(ADVANCE_AGENT_STOP, request)
            ended = f"{progress.approvals_closed} approvals, {progress.connections_revoked} connections ended"
            workflow.set_current_details(ended)
            if progress.finished:
                return progress
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(start)
