"""Exported workflow histories: what happened, kept after Temporal has forgotten the run."""

from datetime import datetime
from typing import Any

from pydantic import ConfigDict
from sqlalchemy import delete, select, tuple_
from sqlmodel import col

from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.model import CheckedModel
from evergrant_server.store.connections.tables import HistoryRow
from evergrant_server.store.database.rows import ModelRepository, column_values, compare_and_set, find_one
from evergrant_server.store.erasure.orders import is_held


class HistoryExport(CheckedModel):
    """One run of a connection's workflow. `closed`: the export has its last event."""

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    connection_id: ConnectionId
    workflow_id: str
    run_id: str
    exported_at: datetime
    closed: bool
    last_event_id: int
    events: list[dict[str, Any]]


class Histories(ModelRepository[HistoryExport, str]):
    _table, _model = HistoryRow, HistoryExport

    async def add(self, export: HistoryExport) -> None:
        """Keep an export. A longer one of the same run replaces a shorter one, never the reverse."""
        if await self._insert(export, revision=1):
            return
        key = {"tenant": export.tenant, "workflow_id": export.workflow_id, "run_id": export.run_id}
        old = await find_one(self._connection, HistoryRow, **key)
        if old is not None and (old["last_event_id"], old["closed"]) < (export.last_event_id, export.closed):
            values = column_values(export)
            await compare_and_set(self._connection, HistoryRow, key, values, old["revision"])

    async def of_connection(self, tenant: Tenant, connection_id: ConnectionId) -> list[HistoryExport]:
        """Every exported run of a connection, in the order in which they were exported."""
        mine = self._where(tenant=tenant, connection_id=connection_id)
        return await self._all(mine.order_by(col(HistoryRow.exported_at), col(HistoryRow.run_id)))

    async def page(self, tenant: Tenant, after: tuple[str, str] | None, limit: int) -> list[HistoryExport]:
        """Exported runs of a tenant by workflow and run, behind the run `after` (workflow id, run id)."""
        key = (col(HistoryRow.workflow_id), col(HistoryRow.run_id))
        query = self._where(tenant=tenant)
        if after is not None:
            query = query.where(tuple_(*key) > after)
        return await self._all(query.order_by(*key).limit(limit))

    async def prune(self, before: datetime, limit: int = 100, *, now: datetime) -> int:
        """Delete exports from before this moment that no legal hold keeps, `limit` at the most; returns how
        many."""
        key = (col(HistoryRow.tenant), col(HistoryRow.workflow_id), col(HistoryRow.run_id))
        held = is_held(key[0], col(HistoryRow.connection_id), now)
        old = select(*key).where(col(HistoryRow.exported_at) < before, ~held).limit(limit)
        return await self._run(delete(HistoryRow).where(tuple_(*key).in_(old)))

    async def closed_run_ids(self, runs: list[tuple[Tenant, str, str]]) -> set[str]:
        """The ids of those runs (tenant, workflow id, run id) whose whole history is kept."""
        key = tuple_(col(HistoryRow.tenant), col(HistoryRow.workflow_id), col(HistoryRow.run_id))
        query = select(col(HistoryRow.run_id)).where(key.in_(runs), col(HistoryRow.closed).is_(True))
        return set((await self._connection.execute(query)).scalars())
