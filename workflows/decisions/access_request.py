"""A request for access: reminders and a deadline until an admin decides, then the end of temporary access."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import access as m
    from evergrant_server.core.messages.base import RequestContext
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import received
    from workflows.activity_calls import advance_access_request, provenance
    from workflows.decisions.wait import DecisionWait


@workflow.defn(name=WorkflowName.ACCESS_REQUEST)
class AccessRequestWorkflow:
    """Owns the waiting; the request, its decision and the permit are in the store."""

    @received.init
    def __init__(self, request: m.AdvanceAccessRequest) -> None:
        self._wait = DecisionWait(request.context)

    @workflow.run
    async def run(self, request: m.AdvanceAccessRequest) -> m.AccessRequestProgress:
        async def advance(context: RequestContext) -> m.AccessRequestProgress:
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
