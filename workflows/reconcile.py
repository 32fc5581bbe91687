"""A pass over the store, or a part of it: every live connection gets its workflow again."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.maintenance import (
        RECONCILE_WORKFLOW,
        ReconcileRequest,
        ReconcileResult,
    )
    from workflows import activity_calls


@workflow.defn(name=RECONCILE_WORKFLOW)
class ReconcileWorkflow:
    """Started by a schedule. Hands on what the last run has noted; knows counts alone."""

    @workflow.run
    async def run(self, order: ReconcileRequest) -> ReconcileResult:
        if workflow.has_last_completion_result():
            last = workflow.get_last_completion_result(ReconcileResult)
            if last is not None:
                so_far = None if last.after is None else last
                noted = {"mark": last.mark, "closed_since": last.closed_since, "so_far": so_far}
                order = order.model_copy(update=noted)
        return await activity_calls.reconcile(order)
