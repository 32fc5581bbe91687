"""The drill: a backup is restored beside the running installation, verified, compared with it and removed."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evergrant_server import audit
from evergrant_server.audit.records import DRILL
from evergrant_server.cli.backup import copies
from evergrant_server.cli.backup.postgresql import Programs
from evergrant_server.cli.backup.verification import Verified, verify
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema
from evergrant_server.store.database.copies import Behind, reading, what_is_behind
from evergrant_server.wiring.platform import open_store


@dataclass
class DrillReport:
    """`ok`: nothing is wrong with the backup. `seconds` of each step. `taken`: by this drill."""

    engine: str
    kind: str
    backup: str
    taken: bool
    bytes: int = 0
    schema: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    behind: Behind | None = None

    @property
    def ok(self) -> bool:
        return not self.verified.problems

    def as_json(self) -> dict[str, Any]:
        found = asdict(self.verified)
        found["newest_at"] = self.verified.newest_at and self.verified.newest_at.isoformat()
        behind = None if self.behind is None else self.behind._asdict()
        facts = {name: value for name, value in vars(self).items() if name not in ("verified", "behind")}
        return {"ok": self.ok, **facts, **found, "behind": behind}


class Stopwatch:
    """Seconds of steps that follow one another, by their names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._began = time.monotonic()

    def lap(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step], self._last = round(now - self._last, 3), now
        self.seconds["total"] = round(now - self._began, 3)


async def drill(
    settings: Settings, backup: Path | None, above: Path | None, programs: Programs
) -> DrillReport:
    """Restore a backup, or one that is taken now, in a scratch folder; verify it, compare it, remove it, and
    record the result in the audit log of the running installation.

    Raises Failure INVALID_REQUEST, STORE_UNAVAILABLE, SCHEMA_MISMATCH.
    """
    watch = Stopwatch()
    async with copies.scratch_folder(above) as scratch:
        source = backup
        if source is None:
            source = scratch / await copies.form_to_take(settings)
            await copies.take(settings, source, programs)
            watch.lap("take")
        kind = copies.kind_of(settings, source)
        engine = "sqlite" if settings.uses_sqlite else "postgresql"
        report = DrillReport(engine, kind, str(backup or "taken now"), backup is None, copies.size_of(source))
        async with copies.serving(settings, source, scratch, programs) as restored:
            watch.lap("restore")
            version = await schema.upgrade(restored.database_url)
            report.schema = version or "none"
            report.verified = await verify(restored)
            watch.lap("verify")
            async with reading(restored.database_url) as older, reading(settings.database_url) as newer:
                report.behind = await what_is_behind(older, newer)
            watch.lap("compare")
    watch.lap("remove")
    report.seconds = watch.seconds
    await _record(settings, report)
    return report


async def _record(settings: Settings, report: DrillReport) -> None:
    """Numbers alone: the report itself is printed."""
    detail = {
        "ok": report.ok,
        "kind": report.kind,
        "taken": report.taken,
        "rows": sum(report.verified.tables.values()),
        "problems": len(report.verified.problems),
        "seconds": report.seconds["total"],
    }
    await record_in_log(settings, AuditAction.BACKUP_DRILLED, detail)


async def record_in_log(settings: Settings, action: AuditAction, detail: dict[str, Any]) -> None:
    """Record what an operator did with a backup, in the installation's audit log."""
    async with open_store(settings, Role.OPERATOR) as (store, _), store.write() as tx:
        entry = AuditEntry(
            tenant=INSTALLATION,
            at=SystemClock().now(),
            action=action,
            object=DRILL,
            context=RequestContext(by="operator"),
            detail=detail,
        )
        await audit.append(tx, entry)
