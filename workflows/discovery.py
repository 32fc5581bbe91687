"""An integration's endpoints, read from its issuer once and pinned."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.connection import (
        DISCOVERY_WORKFLOW,
        DiscoverEndpoints,
        DiscoveryResult,
    )
    from workflows import activity_calls


@workflow.defn(name=DISCOVERY_WORKFLOW)
class DiscoveryWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: DiscoverEndpoints) -> DiscoveryResult:
        return await activity_calls.discover_endpoints(order)
