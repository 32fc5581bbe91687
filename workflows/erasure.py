"""Carries an erasure out: step by step, for as long as providers take to confirm revocations.

Owns the waiting. What is erased, in which order, is decided by the activity from the row of the erasure.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import erasure as m
    from evergrant_server.core.messages.jobs import ADVANCE_ERASURE
    from evergrant_server.core.messages.names import WorkflowName
    from workflows import runs


@workflow.defn(name=WorkflowName.ERASURE)
class ErasureWorkflow:
    """No connection is leased from when it begins: this waits, and counts."""

    @workflow.run
    async def run(self, start: m.ErasureStart) -> m.ErasureProgress:
        while True:
            ids = {"tenant": start.tenant, "erasure_id": start.erasure_id, "context": start.context}
            request = m.ErasureCall(**ids, provenance=runs.provenance())
            progress = await runs.call(ADVANCE_ERASURE, request)
            workflow.set_current_details(
                f"{progress.state}: {progress.connections} connections, {progress.rows} rows and "
                f"{progress.records} audit records erased, {progress.waiting} connections not revoked yet"
            )
            if progress.next_s is None:
                return progress
            if progress.next_s:
                await workflow.sleep(timedelta(seconds=progress.next_s), summary="the next look")
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(start)
