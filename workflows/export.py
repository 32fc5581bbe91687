"""An export: page after page is sealed by a worker, then the lines wait to be fetched, for a while."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.connection import (
        EXPORT_WORKFLOW,
        DeleteExport,
        ExportResult,
        ExportStart,
        Provenance,
        SealExportPage,
    )
    from workflows import activity_calls

_PAGES_A_RUN = 200  # six history events each


@workflow.defn(name=EXPORT_WORKFLOW)
class ExportWorkflow:
    """Knows counts alone: tokens, even sealed ones, stay in the store."""

    @workflow.run
    async def run(self, start: ExportStart) -> ExportResult:
        page = start.pages
        while not (
            progress := await activity_calls.export_page(SealExportPage(**_call(start), page=page))
        ).done:
            page += 1
            if page - start.pages >= _PAGES_A_RUN:
                workflow.continue_as_new(start.model_copy(update={"pages": page}))
        left = (start.expires_at - workflow.now()).total_seconds()
        await workflow.sleep(max(left, 0.001), summary="until nobody came for it")
        await activity_calls.drop_export(DeleteExport(**_call(start)))
        return ExportResult(exported=progress.exported, skipped=progress.skipped)


def _call(start: ExportStart) -> dict[str, Any]:
    info = workflow.info()
    return {
        "tenant": start.tenant,
        "export_id": start.export_id,
        "context": start.context,
        "provenance": Provenance(
            workflow_id=info.workflow_id, run_id=info.run_id, event_id=info.get_current_history_length()
        ),
    }
