"""Commands that a second admin must approve, read with authenticators: see `authority`."""

from datetime import datetime
from typing import Any

from sqlmodel import col

from evergrant_server.core.access import Approval
from evergrant_server.core.ids import AppId, ApprovalId, Tenant
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns

_MOST_COMPARED = 100


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
        """Those of one command of one app that were approved and can be carried out."""
        row = ApprovalRow
        unused = (col(row.used_at).is_(None), col(row.expires_at) > now, col(row.approved_by).is_not(None))
        mine = self._where(*unused, tenant=tenant, app_id=app_id, command=command)
        return await self._all_unchecked(mine.limit(_MOST_COMPARED))

    async def open(self, tenant: Tenant, now: datetime, limit: int) -> list[Approval]:
        """Those that can be approved or carried out, the oldest first."""
        row = ApprovalRow
        mine = self._where(col(row.used_at).is_(None), col(row.expires_at) > now, tenant=tenant)
        return await self._all_unchecked(mine.order_by(col(row.created_at), col(row.id)).limit(limit))
