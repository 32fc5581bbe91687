"""`/v1/erasures` and `/v1/legal-holds`: erase a connection or a subject for good, and forbid that for a time.

A whole tenant is erased on the host alone: `python -m evergrant_server tenants erase`.
"""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import model_validator

from evergrant_server.access import erasure as orders
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Subject,
    Text,
    UtcDatetime,
    View,
)
from evergrant_server.audit.erasure_orders import end_hold as record_end
from evergrant_server.core.access import Action
from evergrant_server.core.connections.erasure import Erasure, ErasureState, LegalHold, TargetKind
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ErasureId, LegalHoldId
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["erasures"])


class ErasureBody(Body):
    """What is erased: one connection, or everything of a subject. `reason` stays in the audit log: name a
    ticket there, and no person."""

    connection_id: str | None = None
    subject: Subject | None = None
    reason: Text

    @model_validator(mode="after")
    def _one(self) -> "ErasureBody":
        if (self.connection_id is None) == (self.subject is None):
            raise ValueError("give either connection_id or subject")
        return self

    @property
    def target(self) -> tuple[TargetKind, str]:
        if self.connection_id is not None:
            return TargetKind.CONNECTION, self.connection_id
        assert self.subject is not None
        return TargetKind.SUBJECT, self.subject


class ErasureView(View):
    """`target` is a connection's id, a tenant, or a subject until it is erased, then empty. `state`:
    `revoking` waits for providers (`waiting` connections), at the longest until `waits_until`; `refused` was
    stopped by the hold `hold_id`. `unconfirmed` counts connections whose provider didn't confirm that every
    token is revoked.
    """

    id: str
    kind: TargetKind
    target: str
    reason: str
    by: str
    state: ErasureState
    created_at: datetime
    waits_until: datetime
    connections: int
    unconfirmed: int
    keys: int
    rows: int
    records: int
    waiting: int
    hold_id: str | None
    finished_at: datetime | None


@router.post("/v1/erasures", status_code=202)
@dangerous("always")
async def create_erasure(body: ErasureBody, call: AdminCall) -> ErasureView:
    """Erase for good: revoke at the provider, destroy the keys, delete every row, and what audit records say.

    It can't be undone. From this response on no token of the connection is leased; of a subject's, once the
    worker has begun. If an erasure of the same target is under way, the response is that one.
    """
    kind, target = body.target
    return ErasureView.of(await order_erasure(call, body, kind, target))


async def order_erasure(call: ApiCall, body: ErasureBody, kind: TargetKind, target: str) -> Erasure:
    call.require_step_up()

    async def approved(tx: Transaction) -> dict[str, str]:
        resolved: dict[str, object] = {}
        if kind is TargetKind.CONNECTION:
            connection = await call.visible_connection(tx, target, Action.ADMIN, revoking=True)
            resolved = {"integration": connection.integration, "provider": connection.provider}
        return await use_approval(tx, call, body, resolved)

    order = orders.Order(call.tenant, kind, target, body.reason, call.context, call.now)
    erasure = await orders.erase(
        call.api.store, order, call.api.settings.erasure_wait, call.while_standing(approved)
    )
    call.api.relay.notify()
    return erasure


@router.get("/v1/erasures")
async def list_erasures(
    call: AuditorCall,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    subject: Annotated[str | None, Query(max_length=255)] = None,
) -> Page[ErasureView]:
    """The tenant's erasures, sorted by id; with `subject` those of this subject, whose name isn't kept."""
    hashed = None if subject is None else call.api.ring.subject_hash(call.tenant, subject)
    listing = call.listing("erasures", limit, cursor, of=hashed)
    async with call.api.store.read() as tx:
        erasures = await tx.erasures.page(call.tenant, listing.after, listing.most, hashed)
    views = [ErasureView.of(erasure) for erasure in erasures]
    return listing.page(views, erasures, lambda erasure: erasure.id)


@router.get("/v1/erasures/{erasure_id}")
async def get_erasure(erasure_id: str, call: AuditorCall) -> ErasureView:
    """How far an erasure has come."""
    async with call.api.store.read() as tx:
        return ErasureView.of(require_found(await tx.erasures.get(call.tenant, ErasureId(erasure_id))))


class HoldBody(Body):
    """What is held: one connection, a subject, or with `tenant` everything. `until` null: until its end."""

    connection_id: str | None = None
    subject: Subject | None = None
    tenant: bool = False
    reason: Text
    until: UtcDatetime | None = None

    @model_validator(mode="after")
    def _one(self) -> "HoldBody":
        if (self.connection_id is not None) + (self.subject is not None) + self.tenant != 1:
            raise ValueError("give one of connection_id, subject, and tenant: true")
        return self


class EndHoldBody(Body):
    reason: Text


class HoldView(View):
    """`target` is a connection's id, a subject or a tenant. `active`: nothing of it is erased or pruned."""

    id: str
    kind: TargetKind
    target: str
    reason: str
    by: str
    active: bool
    created_at: datetime
    until: datetime | None
    ended_at: datetime | None
    ended_by: str | None
    end_reason: str | None


def _hold_view(held: LegalHold, now: datetime) -> HoldView:
    return HoldView.of(held, active=held.is_active(now))


@router.post("/v1/legal-holds", status_code=201)
@dangerous("always", second=False)
async def create_hold(body: HoldBody, call: AdminCall) -> HoldView:
    """Forbid that anything of a connection, a subject or the tenant is erased or pruned."""
    call.require_step_up()
    if body.until is not None and body.until <= call.now:
        raise invalid_request("until", "It must be in the future.")

    async def write(tx: Transaction) -> LegalHold:
        kind, target = TargetKind.TENANT, str(call.tenant)
        if body.connection_id is not None:
            connection = await call.visible_connection(tx, body.connection_id, Action.ADMIN, revoking=True)
            kind, target = TargetKind.CONNECTION, connection.id
        elif body.subject is not None:
            kind, target = TargetKind.SUBJECT, body.subject
        order = orders.Order(call.tenant, kind, target, body.reason, call.context, call.now)
        return await orders.put_hold(tx, order, body.until)

    return _hold_view(await call.write(write), call.now)


@router.get("/v1/legal-holds")
async def list_holds(call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None) -> Page[HoldView]:
    """The tenant's legal holds, ended ones too, sorted by id."""
    listing = call.listing("legal-holds", limit, cursor)
    async with call.api.store.read() as tx:
        holds = await tx.legal_holds.page(call.tenant, listing.after, listing.most)
    return listing.page([_hold_view(held, call.now) for held in holds], holds, lambda held: held.id)


@router.post("/v1/legal-holds/{hold_id}/end")
@dangerous("always")
async def end_hold(hold_id: str, body: EndHoldBody, call: AdminCall) -> HoldView:
    """End a hold: its target may be erased and pruned again."""

    async def write(tx: Transaction) -> LegalHold:
        held = require_found(await tx.legal_holds.get(call.tenant, LegalHoldId(hold_id)))
        if held.ended_at is not None:
            raise Failure(ErrorCode.ALREADY_EXISTS, "This hold has ended already.")
        approved = await use_approval(tx, call, body, {"hold": held.id, "kind": held.kind})
        return await record_end(tx, held, body.reason, call.context, call.now, **approved)

    return _hold_view(await call.write(write), call.now)
