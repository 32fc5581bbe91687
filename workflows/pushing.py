"""An authorization request on its way to the provider, for a browser that waits (RFC 9126)."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.par import (
        PUSHED_AUTHORIZATION_WORKFLOW,
        PushAuthorizationRequest,
        PushResult,
    )
    from workflows import activity_calls


@workflow.defn(name=PUSHED_AUTHORIZATION_WORKFLOW)
class PushedAuthorizationWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: PushAuthorizationRequest) -> PushResult:
        return await activity_calls.push_request(order)
