"""What crosses Temporal for exports. Counts and ids; what is exported, and to which key, is in the store."""

from datetime import datetime

from evergrant_server.core.ids import ExportId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class ExportStart(RequestMessage):
    """The input of an export's run. What is exported, and to which key, is in the store."""

    tenant: Tenant
    export_id: ExportId
    expires_at: datetime  # lines that aren't fetched by then are deleted
    pages: int = 0  # written by earlier runs


class ExportCall(RequestMessage):
    """What the activities of an export take."""

    tenant: Tenant
    export_id: ExportId
    provenance: Provenance


class SealExportPage(ExportCall):
    """Seal the page with this number, counted from 0; done at once when it is there already."""

    page: int


class DeleteExport(ExportCall):
    """Delete the sealed lines that weren't fetched."""


class ExportProgress(Message):
    """How many connections were sealed, and how many had no token to seal."""

    exported: int
    skipped: int
    done: bool


class ExportResult(Message):
    exported: int
    skipped: int
