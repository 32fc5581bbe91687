"""An export: a worker seals page after page, then the lines wait for the admin until they expire."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.export import DeleteExport, ExportResult, ExportStart, SealExportPage
    from evergrant_server.core.messages.names import WorkflowName
    from workflows.activity_calls import delete_export, provenance, seal_export_page

_PAGES_A_RUN = 200  # six history events each


@workflow.defn(name=WorkflowName.EXPORT)
class ExportWorkflow:
    """Knows counts alone: tokens, even sealed ones, stay in the store."""

    @workflow.run
    async def run(self, start: ExportStart) -> ExportResult:
        page = start.pages
        while not (progress := await seal_export_page(SealExportPage(**_call(start), page=page))).done:
            page += 1
            if page - start.pages >= _PAGES_A_RUN:
                workflow.continue_as_new(start.__replace__(pages=page))
        left = (start.expires_at - workflow.now()).total_seconds()
        await workflow.sleep(max(left, 0.001), summary="until the export expires")
        await delete_export(DeleteExport(**_call(start)))
        return ExportResult(exported=progress.exported, skipped=progress.skipped)


def _call(start: ExportStart) -> dict[str, Any]:
    """The fields of an ExportCall."""
    return {
        "tenant": start.tenant,
        "export_id": start.export_id,
        "context": start.context,
        "provenance": provenance(),
    }
