"""An export: grants on their way out, each sealed to a key that an admin gave."""

from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict

from evergrant_server.core.ids import ExportId, TenantRow
from evergrant_server.core.model import CheckedModel


class ExportStatus(StrEnum):
    RUNNING = "running"  # a worker is sealing
    READY = "ready"  # every line is there
    GONE = "gone"  # the lines were deleted: fetched, or expired


class ExportFilters(CheckedModel):
    """Which connections; None: all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    integration: str | None = None
    provider: str | None = None
    subject: str | None = None


class Export(TenantRow):
    """The row. `recipient` is a public key (JWK, RFC 7517); `after` is the last connection looked at."""

    id: ExportId
    status: ExportStatus = ExportStatus.RUNNING
    recipient: dict[str, str]
    filters: ExportFilters = ExportFilters()
    exported: int = 0
    skipped: int = 0
    pages: int = 0
    after: str | None = None
    by: str
    trace_id: str
    created_at: datetime
    expires_at: datetime

    def page_sealed(self, exported: int, skipped: int, after: str | None) -> "Export":
        """One more page is written; without `after` it was the last."""
        return self.__replace__(
            exported=self.exported + exported,
            skipped=self.skipped + skipped,
            pages=self.pages + 1,
            after=after or self.after,
            status=ExportStatus.RUNNING if after else ExportStatus.READY,
        )

    def deleted(self) -> "Export":
        return self.__replace__(status=ExportStatus.GONE)
