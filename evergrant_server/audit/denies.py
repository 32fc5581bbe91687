"""Records which permits of an app deny: an app's row from before a deny is told by it (`store.ends`)."""

from datetime import datetime

from evergrant_server.audit.hash_chain import append
from evergrant_server.audit.records import newest_record
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction


async def record_denies(
    tx: Transaction, tenant: Tenant, app_id: AppId, context: RequestContext, at: datetime
) -> None:
    """Record the app's denies if they have changed: right after the permit, before the app is read again."""
    denies = list(await tx.access.named_denies(tenant, app_id))
    last = await newest_record(tx, tenant, app_id, AuditAction.DENIES_CHANGED)
    if denies != ([] if last is None else last.detail["denies"]):
        detail = {"denies": denies}
        action = AuditAction.DENIES_CHANGED
        entry = AuditEntry(tenant=tenant, at=at, action=action, object=app_id, context=context, detail=detail)
        await append(tx, entry)
