"""The stop of an agent: ends what it has left, a part at a time, until nothing is left."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import agents as m
    from evergrant_server.core.messages.names import WorkflowName
    from workflows.activity_calls import advance_agent_stop, provenance


@workflow.defn(name=WorkflowName.AGENT_STOP)
class AgentStopWorkflow:
    """The agent's requests are refused already when it begins: this tidies up, and counts."""

    @workflow.run
    async def run(self, start: m.AgentStopStart) -> m.AgentStopProgress:
        while True:
            call = m.AgentStopCall(
                tenant=start.tenant, stop_id=start.stop_id, context=start.context, provenance=provenance()
            )
            progress = await advance_agent_stop(call)
            ended = f"{progress.approvals_closed} approvals, {progress.connections_revoked} connections ended"
            workflow.set_current_details(ended)
            if progress.finished:
                return progress
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(start)
