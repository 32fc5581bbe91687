"""Agents' calls that people approve, with authenticators; what is called is sealed."""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, func, select
from sqlmodel import col

from evergrant_server.core.agents.call_approvals import CallApproval, CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, CallApprovalId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.authority import AuthenticatedRepository, row_mac
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, not_found
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

_CALL = "sealed_call"
USED = ("state", "used_at", "next_at")  # what changes when it is used up
_OPEN = [CallApprovalState.WAITING.value, CallApprovalState.APPROVED.value]


class CallApprovalRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        UniqueConstraint("tenant", "call_hash", "round"),
        Index(None, "tenant", "app_id", "state"),
        columns.partial_index("ix_call_approval_next", "next_at", where="next_at IS NOT NULL"),
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
    sealed_call: Sealed | None = columns.sealed()
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
        mine = self._where(tenant=tenant, call_hash=call_hash)
        return await self._first(mine.order_by(col(CallApprovalRow.round).desc()))

    async def page(
        self,
        tenant: Tenant,
        after: str | None,
        limit: int,
        *,
        app_id: AppId | None = None,
        state: CallApprovalState | None = None,
    ) -> list[CallApproval]:
        """Those sorted by id, after the id `after`; of one app and in one state, if given. Not checked."""
        columns = {"app_id": app_id, "state": None if state is None else state.value}
        equal = {name: value for name, value in columns.items() if value is not None}
        return await self._page(self._where(tenant=tenant, **equal), "id", after, limit)

    async def count_waiting(self, tenant: Tenant, app_id: AppId) -> int:
        waits = {"app_id": app_id, "state": CallApprovalState.WAITING.value}
        mine = columns_equal(CallApprovalRow, tenant=tenant, **waits)
        query = select(func.count()).select_from(CallApprovalRow).where(mine)
        return int((await self._connection.execute(query)).scalar_one())

    async def open_of_app(self, tenant: Tenant, app_id: AppId, limit: int) -> list[CallApproval]:
        """Those that wait, or are approved and unused. Not checked."""
        mine = self._where(col(CallApprovalRow.state).in_(_OPEN), tenant=tenant, app_id=app_id)
        return await self._all_unchecked(mine.order_by(col(CallApprovalRow.id)).limit(limit))

    async def overdue(self, before: datetime, limit: int) -> list[CallApproval]:
        """Approvals of every tenant whose next step was due before then, the longest first. Not checked."""
        late = self._where(col(CallApprovalRow.next_at) < before)
        return await self._all_unchecked(late.order_by(col(CallApprovalRow.next_at)).limit(limit))
