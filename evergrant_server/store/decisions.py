"""What people decide, with authenticators: an approval is for what was asked, not for what a row says.

Requests for access, agents' calls (what is called is sealed), and commands that need a second admin.
"""

import json
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, UniqueConstraint, func, select
from sqlmodel import col

from evergrant_server.core.decisions import (
    AccessRequest,
    AccessRequestKind,
    AccessRequestState,
    Approval,
    CallApproval,
    CallApprovalState,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessRequestId, AppId, ApprovalId, CallApprovalId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.access import app_foreign_key
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, row_mac
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, not_found
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

USED = ("state", "used_at", "next_at")  # what changes when a call's approval is used up
_CALL = "sealed_call"
_OPEN_CALLS = [CallApprovalState.WAITING.value, CallApprovalState.APPROVED.value]
_MOST_COMPARED = 100


def _equal(app_id: AppId | None, state: StrEnum | None) -> dict[str, str]:
    """The columns of a list of one app, in one state, if given."""
    equal = {"app_id": app_id, "state": None if state is None else state.value}
    return {name: value for name, value in equal.items() if value is not None}


class AccessRequestRow(columns.IdTable, table=True):
    __table_args__ = (
        app_foreign_key(),
        Index(None, "tenant", "app_id", "state"),
        columns.partial_index("ix_access_request_next", "next_at", where="next_at IS NOT NULL"),
    )
    app_id: str
    kind: str
    permit_name: str
    permit: dict[str, Any] = columns.json()
    lifetime_s: float | None = None
    reason: str
    requested_by: str
    created_at: datetime = columns.timestamp()
    decide_by: datetime = columns.timestamp()
    state: str
    reminders: int
    decided_by: str | None = None
    decided_at: datetime | None = columns.timestamp()
    note: str | None = None
    ends_at: datetime | None = columns.timestamp()
    next_at: datetime | None = columns.timestamp()
    mac: str | None = None


class AccessRequests(AuthenticatedRepository[AccessRequest, AccessRequestId]):
    _table, _model = AccessRequestRow, AccessRequest

    async def add(self, request: AccessRequest) -> None:
        """Add a request. Raises Failure ALREADY_EXISTS."""
        await self._add(request, f"Request {request.id}")

    async def page(
        self,
        tenant: Tenant,
        after: str | None,
        limit: int,
        *,
        app_id: AppId | None = None,
        state: AccessRequestState | None = None,
    ) -> list[AccessRequest]:
        """Requests sorted by id, after the id `after`: of one app and in one state, if given. Not checked."""
        return await self._page(self._where(tenant=tenant, **_equal(app_id, state)), "id", after, limit)

    async def waiting(self, tenant: Tenant, app_id: AppId, limit: int) -> list[AccessRequest]:
        """The requests of an app that wait for a decision. Not checked."""
        return await self.page(tenant, None, limit, app_id=app_id, state=AccessRequestState.WAITING)

    async def newest_removal(self, tenant: Tenant, app_id: AppId, permit_name: str) -> AccessRequest | None:
        """The last proposal to remove this permit, decided or not. Not checked."""
        proposals = {"app_id": app_id, "permit_name": permit_name, "kind": AccessRequestKind.REMOVAL.value}
        newest_first = self._where(tenant=tenant, **proposals).order_by(
            col(AccessRequestRow.created_at).desc()
        )
        newest = await self._all_unchecked(newest_first.limit(1))
        return newest[0] if newest else None

    async def overdue(self, before: datetime, limit: int) -> list[AccessRequest]:
        """Requests of every tenant whose next step was due before then, the longest first. Not checked."""
        late = self._where(col(AccessRequestRow.next_at) < before)
        return await self._all_unchecked(late.order_by(col(AccessRequestRow.next_at)).limit(limit))


class CallApprovalRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        UniqueConstraint("tenant", "call_hash", "round"),
        Index(None, "tenant", "app_id", "state"),
        columns.partial_index("ix_call_approval_next", "next_at", where="next_at IS NOT NULL"),
        Index("ix_call_approval_connection", "tenant", "connection_id"),
    )
    app_id: str
    connection_id: str
    call_hash: str
    round: int
    name: str
    reason: str
    requested_by: str
    created_at: datetime = columns.timestamp()
    decide_by: datetime = columns.timestamp()
    state: str
    reminders: int
    escalated_at: datetime | None = columns.timestamp()
    decided_by: str | None = None
    decided_at: datetime | None = columns.timestamp()
    note: str | None = None
    use_by: datetime | None = columns.timestamp()
    used_at: datetime | None = columns.timestamp()
    next_at: datetime | None = columns.timestamp()
    sealed_call: Sealed | None = columns.sealed(columns.SealedBy(KeyPurpose.LEASE))
    mac: str | None = None


class CallApprovals(
    IntakeRepository[CallApproval, CallApprovalId], AuthenticatedRepository[CallApproval, CallApprovalId]
):
    _table, _model = CallApprovalRow, CallApproval
    _purpose = KeyPurpose.LEASE  # the gateway asks too, and holds no other

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(self, approval: CallApproval, call: dict[str, Any]) -> None:
        """Add a request for this call. Raises Failure STORE_CONFLICT when another one came first."""
        sealed = await self._sealed(approval, {_CALL: Secret(json.dumps(call))})
        if not await self._insert(approval, **sealed):
            raise Failure(ErrorCode.STORE_CONFLICT, "The call was asked for at the same moment.")

    async def use(self, used: CallApproval, *, expected: int) -> CallApproval:
        """Write that it is used up. Raises as `replace` does."""
        return await self._change_only(used, USED, expected, mac=row_mac(self._ring, used))

    async def called(self, approval: CallApproval) -> dict[str, Any]:
        """What is called. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        opened = await self._opened(approval, _CALL)
        if opened is None:
            raise not_found(f"the call of {approval.id}")
        return json.loads(opened.reveal())

    async def newest(self, tenant: Tenant, call_hash: str) -> CallApproval | None:
        """The last approval of this call."""
        rounds = self._where(tenant=tenant, call_hash=call_hash)
        return await self._first(rounds.order_by(col(CallApprovalRow.round).desc()))

    async def page(
        self,
        tenant: Tenant,
        after: str | None,
        limit: int,
        *,
        app_id: AppId | None = None,
        state: CallApprovalState | None = None,
    ) -> list[CallApproval]:
        """Approvals sorted by id, after the id `after`: of one app, in one state, if given. Not checked."""
        return await self._page(self._where(tenant=tenant, **_equal(app_id, state)), "id", after, limit)

    async def count_waiting(self, tenant: Tenant, app_id: AppId) -> int:
        waiting = columns_equal(CallApprovalRow, tenant=tenant, **_equal(app_id, CallApprovalState.WAITING))
        query = select(func.count()).select_from(CallApprovalRow).where(waiting)
        return int((await self._connection.execute(query)).scalar_one())

    async def open_of_app(self, tenant: Tenant, app_id: AppId, limit: int) -> list[CallApproval]:
        """The approvals of an app that wait, or are approved and unused. Not checked."""
        still_open = self._where(col(CallApprovalRow.state).in_(_OPEN_CALLS), tenant=tenant, app_id=app_id)
        return await self._all_unchecked(still_open.order_by(col(CallApprovalRow.id)).limit(limit))

    async def overdue(self, before: datetime, limit: int) -> list[CallApproval]:
        """Approvals of every tenant whose next step was due before then, the longest first. Not checked."""
        late = self._where(col(CallApprovalRow.next_at) < before)
        return await self._all_unchecked(late.order_by(col(CallApprovalRow.next_at)).limit(limit))


class ApprovalRow(columns.IdTable, table=True):
    app_id: str  # or a person's id
    by: str
    command: str
    body: dict[str, Any] | None = columns.json()
    resolves_to: dict[str, Any] = columns.json()
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    approved_by: str | None
    used_at: datetime | None = columns.timestamp()
    mac: str | None = None


class Approvals(AuthenticatedRepository[Approval, ApprovalId]):
    """Commands that a second admin must approve, or has approved."""

    _table, _model = ApprovalRow, Approval

    async def put(self, approval: Approval, *, expected: int | None) -> Approval:
        """Add (`expected` None) or change one. Raises Failure ALREADY_EXISTS, STORE_CONFLICT."""
        return await self._put(approval, f"Approval {approval.id}", expected)

    async def approved(self, tenant: Tenant, app_id: AppId, command: str, now: datetime) -> list[Approval]:
        """The approvals of one command of one app that were given and can be used. Not checked."""
        row = ApprovalRow
        unused = (col(row.used_at).is_(None), col(row.expires_at) > now, col(row.approved_by).is_not(None))
        usable = self._where(*unused, tenant=tenant, app_id=app_id, command=command)
        return await self._all_unchecked(usable.limit(_MOST_COMPARED))

    async def open(self, tenant: Tenant, now: datetime, limit: int) -> list[Approval]:
        """The approvals that can be given or used, the oldest first. Not checked."""
        row = ApprovalRow
        unused = self._where(col(row.used_at).is_(None), col(row.expires_at) > now, tenant=tenant)
        return await self._all_unchecked(unused.order_by(col(row.created_at), col(row.id)).limit(limit))
