"""One pass that asks providers whether grants still live."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.maintenance import (
        INTROSPECTION_WORKFLOW,
        IntrospectGrants,
        IntrospectGrantsResult,
    )
    from workflows import activity_calls


@workflow.defn(name=INTROSPECTION_WORKFLOW)
class IntrospectionWorkflow:
    """Started by a schedule; knows counts alone."""

    @workflow.run
    async def run(self, order: IntrospectGrants) -> IntrospectGrantsResult:
        return await activity_calls.look_elsewhere(order)
