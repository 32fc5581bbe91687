"""Requests for access, with authenticators: an admin approves what the app asked for, not what a row says."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlmodel import col

from evergrant_server.core.ids import AccessRequestId, AppId, Tenant
from evergrant_server.core.lifecycle.access_requests import (
    AccessRequest,
    AccessRequestKind,
    AccessRequestState,
)
from evergrant_server.store.access import app_foreign_key
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns


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
        given = {"app_id": app_id, "state": None if state is None else state.value}
        equal = {name: value for name, value in given.items() if value is not None}
        return await self._page(self._where(tenant=tenant, **equal), "id", after, limit)

    async def waiting(self, tenant: Tenant, app_id: AppId, limit: int) -> list[AccessRequest]:
        """The requests of an app that wait for a decision. Not checked."""
        return await self.page(tenant, None, limit, app_id=app_id, state=AccessRequestState.WAITING)

    async def newest_removal(self, tenant: Tenant, app_id: AppId, permit_name: str) -> AccessRequest | None:
        """The last proposal to remove this permit, decided or not. Not checked."""
        mine = {"app_id": app_id, "permit_name": permit_name, "kind": AccessRequestKind.REMOVAL.value}
        query = self._where(tenant=tenant, **mine).order_by(col(AccessRequestRow.created_at).desc()).limit(1)
        found = await self._all_unchecked(query)
        return found[0] if found else None

    async def overdue(self, before: datetime, limit: int) -> list[AccessRequest]:
        """Requests of every tenant whose next step was due before then, the longest first. Not checked."""
        late = self._where(col(AccessRequestRow.next_at) < before)
        return await self._all_unchecked(late.order_by(col(AccessRequestRow.next_at)).limit(limit))
