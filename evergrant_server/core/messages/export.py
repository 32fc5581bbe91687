"""What crosses Temporal for exports. Counts and ids; what is exported, and to which key, is in the store."""

from datetime import datetime

from evergrant_server.core.ids import ExportId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestContext


class ExportStart(Message):
    """The input of an export's run. What is exported, and to which key, is in the store."""

    tenant: Tenant
    export_id: ExportId
    expires_at: datetime  # what nobody fetched by then is deleted
    pages: int = 0  # written by earlier runs
    context: RequestContext


class ExportCall(Message):
    """What the activities of an export are told."""

    tenant: Tenant
    export_id: ExportId
    context: RequestContext
    provenance: Provenance


class SealExportPage(ExportCall):
    """Seal the page with this number, counted from 0; done at once when it is there already."""

    page: int


class DeleteExport(ExportCall):
    """Delete the sealed lines that nobody fetched."""


class ExportProgress(Message):
    """Counts alone: how many connections were sealed, and how many had nothing to seal."""

    exported: int
    skipped: int
    done: bool


class ExportResult(Message):
    """The result of an export's workflow."""

    exported: int
    skipped: int
