"""A pass over the store: every live connection gets its workflow again."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.base import WorkflowName
    from evergrant_server.core.messages.maintenance import ReconcileRequest, ReconcileResult
    from workflows import activity_calls


@workflow.defn(name=WorkflowName.RECONCILE)
class ReconcileWorkflow:
    """Started by a schedule; continues where the run before it ended. Sees counts alone."""

    @workflow.run
    async def run(self, request: ReconcileRequest) -> ReconcileResult:
        if workflow.has_last_completion_result():
            last = workflow.get_last_completion_result(ReconcileResult)
            if last is not None:
                so_far = None if last.after is None else last
                noted = {
                    "audit_checkpoint": last.audit_checkpoint,
                    "closed_since": last.closed_since,
                    "so_far": so_far,
                }
                request = request.model_copy(update=noted)
        return await activity_calls.reconcile(request)
