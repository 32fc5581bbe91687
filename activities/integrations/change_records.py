"""Audit records of changes to an integration, and the check that its issuer is the same."""

from datetime import datetime

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction


async def record_change(
    tx: Transaction,
    at: datetime,
    action: AuditAction,
    integration: Integration,
    context: RequestContext,
    **detail: object,
) -> None:
    entry = AuditEntry(
        tenant=integration.tenant,
        at=at,
        action=action,
        object=integration.id,
        context=context,
        detail={"issuer": integration.issuer, **detail},
    )
    await audit.append(tx, entry)


async def current_if_same_issuer(tx: Transaction, seen: Integration) -> Integration | None:
    """The row, unless its issuer was changed, which starts a discovery of its own."""
    current = await tx.integrations.get(seen.tenant, seen.id)
    return current if current is not None and current.issuer == seen.issuer else None
