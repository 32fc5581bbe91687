"""One pass over discovered metadata: is what was pinned still what issuers publish?"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.upkeep import REREAD_WORKFLOW, MetadataRead, RereadMetadata
    from workflows import calls


@workflow.defn(name=REREAD_WORKFLOW)
class RereadMetadataWorkflow:
    """Started by a schedule; knows counts alone."""

    @workflow.run
    async def run(self, order: RereadMetadata) -> MetadataRead:
        return await calls.reread_metadata(order)
