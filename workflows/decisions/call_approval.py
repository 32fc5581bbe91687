"""An agent's call that a person approves: reminders, escalation and deadline until it is decided and used."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import agents as m
    from evergrant_server.core.messages.base import RequestContext
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import received
    from workflows.activity_calls import advance_call_approval, provenance
    from workflows.decisions.wait import DecisionWait


@workflow.defn(name=WorkflowName.CALL_APPROVAL)
class CallApprovalWorkflow:
    """Owns the waiting; the call, its decision and its use are in the store."""

    @received.init
    def __init__(self, approval: m.AdvanceCallApproval) -> None:
        self._wait = DecisionWait(approval.context)

    @workflow.run
    async def run(self, approval: m.AdvanceCallApproval) -> m.CallApprovalProgress:
        async def advance(context: RequestContext) -> m.CallApprovalProgress:
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
