"""Records of backup drills: when a backup was last restored and found whole, and how the last drill ended."""

from datetime import UTC, datetime
from typing import NamedTuple

from evergrant_server.audit.records import newest_records
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.store import Transaction

DRILL = "backup"  # the object of their records, which are the installation's
_EVER = datetime(2000, 1, 1, tzinfo=UTC)


class Drills(NamedTuple):
    """When the last drill was, whether it found nothing wrong, and when one last did; None: never."""

    last_at: datetime | None
    last_ok: bool
    good_at: datetime | None


async def newest_drills(tx: Transaction) -> Drills:
    """As the last twenty records have it."""
    records = await newest_records(tx, INSTALLATION, DRILL, [AuditAction.BACKUP_DRILLED], _EVER)
    if not records:
        return Drills(None, False, None)
    good = next((record.at for record in records if record.detail.get("ok") is True), None)
    return Drills(records[0].at, records[0].detail.get("ok") is True, good)
