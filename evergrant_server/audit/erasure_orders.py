"""What API, host and workers write alike for erasures: a requested revocation, the end of a hold."""

from datetime import datetime

from evergrant_server.audit.appending import append
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.erasure import Erasure, LegalHold
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.store import Transaction


async def request_revocation(
    tx: Transaction, connection: Connection, erasure: Erasure, context: RequestContext, now: datetime
) -> None:
    """Have a live connection revoked, as its owner's own command would."""
    if connection.has_ended:
        return
    reason = f"erased: {erasure.id}"
    requested = connection.revocation_requested(reason, now)
    await tx.connections.replace(requested, expected=connection.revision)
    message = Revoke(reason=reason, context=context)
    await tx.outbox.add(signal_message(connection.tenant, connection.id, SignalName.REVOKE, message, now))
    await _record(
        tx, connection.tenant, AuditAction.REVOCATION_REQUESTED, connection.id, context, now, reason=reason
    )


async def end_hold(
    tx: Transaction, held: LegalHold, reason: str, context: RequestContext, now: datetime, **detail: str
) -> LegalHold:
    """End a hold. What it has kept from pruning is looked at again by the next passes."""
    ended = await tx.legal_holds.replace(held.ended(context.by, reason, now), expected=held.revision)
    await tx.legal_holds.begin_pruning_anew(held.tenant)
    await _record(
        tx,
        held.tenant,
        AuditAction.HOLD_ENDED,
        held.id,
        context,
        now,
        reason=reason,
        kind=held.kind,
        **detail,
    )
    return ended


async def _record(
    tx: Transaction,
    tenant: Tenant,
    action: AuditAction,
    object_id: str,
    context: RequestContext,
    at: datetime,
    /,
    **detail: object,
) -> None:
    entry = AuditEntry(tenant=tenant, at=at, action=action, object=object_id, context=context, detail=detail)
    await append(tx, entry)
