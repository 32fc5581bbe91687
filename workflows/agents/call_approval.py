"""An agent's call that a person approves: reminders, escalation and deadline until it is decided and used."""

from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import agents as m
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows.activity_calls import advance_call_approval, provenance


@workflow.defn(name=WorkflowName.CALL_APPROVAL)
class CallApprovalWorkflow:
    """Owns the waiting; the call, its decision and its use are in the store."""

    @workflow.init
    def __init__(self, approval: m.AdvanceCallApproval) -> None:
        self._context = approval.context
        self._changed = False

    @workflow.run
    async def run(self, approval: m.AdvanceCallApproval) -> m.CallApprovalProgress:
        while True:
            self._changed = False
            call = m.CallApprovalCall(
                tenant=approval.tenant,
                approval_id=approval.approval_id,
                context=self._context,
                provenance=provenance(),
            )
            progress = await advance_call_approval(call)
            if progress.next_s is None and not self._changed:
                return progress
            workflow.set_current_details(f"it is {progress.state}")
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._changed,
                    timeout=progress.next_s,
                    timeout_summary="the next reminder, the escalation, or the deadline",
                )

    @workflow.signal(name=SignalName.ADVANCE_CALL_APPROVAL)
    def advance(self, signal: m.AdvanceCallApproval) -> None:
        self._changed, self._context = True, signal.context
