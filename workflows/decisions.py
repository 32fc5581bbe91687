"""Waiting for a person's decision, which the store keeps: on a request for access, or on an agent's call.

Owns the waiting: neither the decision (api) nor what is due (core).
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import decisions as m
    from evergrant_server.core.messages.base import RequestContext
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import received
    from workflows.activity_calls import advance_access_request, advance_call_approval, provenance


class DecisionWait:
    """Has the decision advanced at each of its moments, and when a signal says that it has changed."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._changed = False

    def note_change(self, context: RequestContext) -> None:
        self._changed, self._context = True, context

    async def advance_until_done(
        self, advance: Callable[[RequestContext], Awaitable[m.DecisionProgress]], waits_for: str
    ) -> m.DecisionProgress:
        """The last progress, once no moment is left. `waits_for` is shown to operators."""
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
    """A request for access: reminders and a deadline until it is decided, then the end of the access."""

    @received.init
    def __init__(self, request: m.AdvanceAccessRequest) -> None:
        self._wait = DecisionWait(request.context)

    @workflow.run
    async def run(self, request: m.AdvanceAccessRequest) -> m.DecisionProgress:
        async def advance(context: RequestContext) -> m.DecisionProgress:
            return await advance_access_request(
                m.AccessRequestCall(
                    tenant=request.tenant,
                    request_id=request.request_id,
                    context=context,
                    provenance=provenance(),
                )
            )

        waits_for = "the next reminder, the deadline, or the end of the access"
        return await self._wait.advance_until_done(advance, waits_for)

    @workflow.signal(name=SignalName.ADVANCE_ACCESS_REQUEST)
    def advance(self, signal: m.AdvanceAccessRequest) -> None:
        self._wait.note_change(signal.context)


@workflow.defn(name=WorkflowName.CALL_APPROVAL)
class CallApprovalWorkflow:
    """An agent's call: reminders, escalation and a deadline until a person decides, then its one use."""

    @received.init
    def __init__(self, approval: m.AdvanceCallApproval) -> None:
        self._wait = DecisionWait(approval.context)

    @workflow.run
    async def run(self, approval: m.AdvanceCallApproval) -> m.DecisionProgress:
        async def advance(context: RequestContext) -> m.DecisionProgress:
            return await advance_call_approval(
                m.CallApprovalCall(
                    tenant=approval.tenant,
                    approval_id=approval.approval_id,
                    context=context,
                    provenance=provenance(),
                )
            )

        waits_for = "the next reminder, the escalation, or the deadline"
        return await self._wait.advance_until_done(advance, waits_for)

    @workflow.signal(name=SignalName.ADVANCE_CALL_APPROVAL)
    def advance(self, signal: m.AdvanceCallApproval) -> None:
        self._wait.note_change(signal.context)
