"""Writes the audit record of a request in the transaction of its change."""

from datetime import datetime

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction


async def record(
    tx: Transaction,
    tenant: Tenant,
    action: AuditAction,
    object_id: str,
    context: RequestContext,
    at: datetime,
    /,
    **detail: object,
) -> None:
    """Append one record about the object with this id. `detail` must hold no secret."""
    entry = AuditEntry(tenant=tenant, at=at, action=action, object=object_id, context=context, detail=detail)
    await audit.append(tx, entry)
