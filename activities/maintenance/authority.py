"""The recurring check of rows that say who may do what: apps, permits, integrations, definitions, exports
and the ends of audit chains. Connections and consents are checked where they are used."""

from datetime import datetime, timedelta

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.telemetry.alarms import report_broken_authority

_RECORDED_FOR = timedelta(days=1)  # one record a day for a row that stays broken


async def report_broken_rows(store: Store, now: datetime) -> None:
    """Raise an alarm for each broken row, and record it. Raises Failure STORE_UNAVAILABLE."""
    for broken in (*await broken_configuration(store), *await audit.broken_heads(store)):
        report_broken_authority(broken.failure)
        async with store.write() as tx:
            last = await audit.newest_record(tx, broken.tenant, broken.row, AuditAction.AUTHORITY_BROKEN)
            if last is not None and last.at > now - _RECORDED_FOR:
                continue
            entry = AuditEntry(
                tenant=broken.tenant,
                at=now,
                action=AuditAction.AUTHORITY_BROKEN,
                object=broken.row,
                context=RequestContext(by="schedule"),
                detail={"table": broken.table},
            )
            await audit.append(tx, entry)
