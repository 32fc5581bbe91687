"""An authorization request on its way to the provider, for a browser that waits (RFC 9126)."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.pushing import PUSH_WORKFLOW, Pushed, PushRequest
    from workflows import calls


@workflow.defn(name=PUSH_WORKFLOW)
class PushRequestWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: PushRequest) -> Pushed:
        return await calls.push_request(order)
