"""Orders to erase for good, and legal holds: what API, console and host write, in one transaction each.

An erasure is refused while a hold forbids it, and the refusal is recorded. A worker carries it out: see
`activities.erasure`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.audit.erasure_orders import request_revocation
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.erasure import Erasure, LegalHold, TargetKind, under_hold
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ErasureId, LegalHoldId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import erasure_message
from evergrant_server.crypto import KeyRing
from evergrant_server.problems import invalid_request
from evergrant_server.store import Store, Transaction

Approved = Callable[[Transaction], Awaitable[dict[str, str]]]

_TRIES = 100  # an erasure must succeed on a busy row
_MOST_NAMED = 5


@dataclass(frozen=True)
class Order:
    """What is to be erased or held, by whom and why."""

    tenant: Tenant
    kind: TargetKind
    target: str
    reason: str
    context: RequestContext
    at: datetime

    def target_hash(self, ring: KeyRing) -> str:
        """What stays of a subject's name: a keyed hash, by which its erasure can be proven. Ids and names of
        tenants stay as they are."""
        return ring.subject_hash(self.tenant, self.target) if self.kind is TargetKind.SUBJECT else self.target

    def named(self, ring: KeyRing) -> dict[str, str]:
        """What audit records say of it: never a subject's name."""
        return {"kind": self.kind.value, "target": self.target_hash(ring), "reason": self.reason}


async def erase(store: Store, order: Order, wait: timedelta, approved: Approved) -> Erasure:
    """Order the erasure; the one that is under way for this target, if there is one.

    `wait`: how long providers may take to confirm revocations. `approved` uses up a second admin's approval
    in the same transaction. Raises Failure UNDER_LEGAL_HOLD, which is recorded, NOT_FOUND, INVALID_REQUEST.
    """

    async def write(tx: Transaction) -> Erasure:
        return await _erase(tx, order, wait, approved)

    try:
        return await run_transaction(store, write, tries=_TRIES)
    except Failure as failure:
        if failure.code is ErrorCode.UNDER_LEGAL_HOLD:
            hold_id = failure.context["hold_id"]
            await run_transaction(store, lambda tx: _record_refusal(tx, order, hold_id))
        raise


async def _erase(tx: Transaction, order: Order, wait: timedelta, approved: Approved) -> Erasure:
    ring, tenant, now = tx.ring, order.tenant, order.at
    hold = await tx.legal_holds.against(tenant, order.kind, order.target, now)
    if hold is not None:
        raise under_hold(hold)
    target_hash = order.target_hash(ring)
    under_way = await tx.erasures.open_of(tenant, order.kind, target_hash)
    if under_way is not None:
        return under_way
    if order.kind is TargetKind.SUBJECT:
        await _require_no_permit(tx, tenant, order.target)
    extra = await approved(tx)
    erasure = _new(order, target_hash, now + wait)
    await tx.erasures.add(erasure)
    await tx.outbox.add(erasure_message(erasure, order.context, now))
    if order.kind is TargetKind.CONNECTION:
        connection = await tx.revocable_rows.connection(tenant, ConnectionId(order.target), now)
        if connection is None:
            raise Failure(ErrorCode.NOT_FOUND)
        await request_revocation(tx, connection, erasure, order.context, now)
    await record(
        tx,
        tenant,
        AuditAction.ERASURE_REQUESTED,
        erasure.id,
        order.context,
        now,
        **order.named(ring),
        **extra,
    )
    return erasure


def _new(order: Order, target_hash: str, waits_until: datetime) -> Erasure:
    return Erasure(
        tenant=order.tenant,
        id=ErasureId(new_id("era")),
        kind=order.kind,
        target=order.target,
        target_hash=target_hash,
        reason=order.reason,
        by=order.context.by,
        created_at=order.at,
        waits_until=waits_until,
    )


async def _require_no_permit(tx: Transaction, tenant: Tenant, subject: str) -> None:
    """Raise Failure INVALID_REQUEST while permits name the subject: an admin decides what they become."""
    permits = await tx.personal_rows.permits_naming(tenant, subject)
    if permits:
        named = ", ".join(f"{name} of {app}" for app, name in permits[:_MOST_NAMED])
        rest = f" and {len(permits) - _MOST_NAMED} more" if len(permits) > _MOST_NAMED else ""
        why = f"These permits name this subject: {named}{rest}. Delete or change them first."
        raise invalid_request("subject", why)


async def _record_refusal(tx: Transaction, order: Order, hold_id: str) -> None:
    await record(
        *(tx, order.tenant, AuditAction.ERASURE_REFUSED, hold_id, order.context, order.at),
        **order.named(tx.ring),
        hold_id=hold_id,
    )


async def put_hold(tx: Transaction, order: Order, until: datetime | None) -> LegalHold:
    """Forbid to erase or prune the target, until then or until the hold is ended."""
    held = LegalHold(
        tenant=order.tenant,
        id=LegalHoldId(new_id("hld")),
        kind=order.kind,
        target=order.target,
        target_hash=order.target_hash(tx.ring),
        reason=order.reason,
        by=order.context.by,
        created_at=order.at,
        until=until,
    )
    await tx.legal_holds.add(held)
    lasts = {} if until is None else {"until": until.isoformat()}
    detail = {**order.named(tx.ring), **lasts}
    await record(tx, order.tenant, AuditAction.HOLD_PUT, held.id, order.context, order.at, **detail)
    return held
