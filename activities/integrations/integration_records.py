"""What activities write about integrations: the audit record, and the row if it is still the one they saw."""

from datetime import datetime
from typing import Any

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
    detail: dict[str, Any],
) -> None:
    """Add the audit record of what a worker has found out about an integration."""
    entry = AuditEntry(
        tenant=integration.tenant,
        at=at,
        action=action,
        object=integration.id,
        context=context,
        detail={"issuer": integration.authorization_server, **detail},
    )
    await audit.append(tx, entry)


async def current_if_same_place(tx: Transaction, seen: Integration) -> Integration | None:
    """The row, unless its issuer or its parameters were changed, which starts a discovery of its own."""
    current = await tx.integrations.get(seen.tenant, seen.id)
    if current is None or (current.issuer, current.params) != (seen.issuer, seen.params):
        return None
    return current
