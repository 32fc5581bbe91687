"""An export: page after page is sealed by a worker, then the lines wait to be fetched, for a while."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import (
        EXPORT_WORKFLOW,
        DropExport,
        Exported,
        ExportPage,
        ExportStart,
        Provenance,
    )
    from workflows import calls

_PAGES_A_RUN = 200  # six history events each


@workflow.defn(name=EXPORT_WORKFLOW)
class ExportWorkflow:
    """Knows counts alone: tokens, even sealed ones, stay in the store."""

    @workflow.run
    async def run(self, start: ExportStart) -> Exported:
        page = start.pages
        while not (progress := await calls.export_page(ExportPage(**_call(start), page=page))).done:
            page += 1
            if page - start.pages >= _PAGES_A_RUN:
                workflow.continue_as_new(start.model_copy(update={"pages": page}))
        left = (start.expires_at - workflow.now()).total_seconds()
        await workflow.sleep(max(left, 0.001), summary="until nobody came for it")
        await calls.drop_export(DropExport(**_call(start)))
        return Exported(exported=progress.exported, skipped=progress.skipped)


def _call(start: ExportStart) -> dict[str, Any]:
    info = workflow.info()
    return {
        "tenant": start.tenant,
        "export_id": start.export_id,
        "asked": start.asked,
        "provenance": Provenance(
            workflow_id=info.workflow_id, run_id=info.run_id, event_id=info.get_current_history_length()
        ),
    }
