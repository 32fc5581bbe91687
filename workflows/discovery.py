"""An integration's endpoints, read from its issuer once and pinned."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import DISCOVERY_WORKFLOW, Discover, Discovered
    from workflows import calls


@workflow.defn(name=DISCOVERY_WORKFLOW)
class DiscoveryWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: Discover) -> Discovered:
        return await calls.discover_endpoints(order)
