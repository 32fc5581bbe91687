"""One pass over discovered metadata: is what was pinned still what issuers publish?"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.maintenance import (
        REREAD_METADATA_WORKFLOW,
        RereadMetadata,
        RereadMetadataResult,
    )
    from workflows import activity_calls


@workflow.defn(name=REREAD_METADATA_WORKFLOW)
class RereadMetadataWorkflow:
    """Started by a schedule; knows counts alone."""

    @workflow.run
    async def run(self, order: RereadMetadata) -> RereadMetadataResult:
        return await activity_calls.reread_metadata(order)
