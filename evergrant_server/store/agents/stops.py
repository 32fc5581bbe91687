"""Orders to stop an agent, with authenticators, and the connections that no other app has used."""

from datetime import datetime

from sqlalchemy import Index, exists, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.ids import AgentStopId, AppId, ConnectionId, Tenant
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal


class AgentStopRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        Index(None, "tenant", "app_id", "created_at"),
        columns.partial_index("ix_agent_stop_unfinished", "created_at", where="finished_at IS NULL"),
    )
    app_id: str
    reason: str
    by: str
    revoke_connections: bool
    created_at: datetime = columns.timestamp()
    approvals_closed: int
    connections_revoked: int
    connections_kept: int
    delegations_ended: int
    after: str
    finished_at: datetime | None = columns.timestamp()
    mac: str | None = None


class AgentStops(AuthenticatedRepository[AgentStop, AgentStopId]):
    _table, _model = AgentStopRow, AgentStop

    async def add(self, stop: AgentStop) -> None:
        """Raises Failure ALREADY_EXISTS."""
        await self._add(stop, f"Stop {stop.id}")

    async def newest(self, tenant: Tenant, app_id: AppId) -> AgentStop | None:
        """The last order to stop this agent."""
        mine = self._where(tenant=tenant, app_id=app_id)
        return await self._first(mine.order_by(col(AgentStopRow.created_at).desc()))

    async def unfinished(self, before: datetime, limit: int) -> list[AgentStop]:
        """Orders of every tenant from before then that haven't come to their end. Not checked."""
        row = AgentStopRow
        late = self._where(col(row.finished_at).is_(None), col(row.created_at) < before)
        return await self._all_unchecked(late.order_by(col(row.created_at)).limit(limit))

    async def used_connections(
        self, tenant: Tenant, app_id: AppId, after: str, limit: int
    ) -> list[tuple[ConnectionId, bool]]:
        """Connections that the app has leased, by id after `after`, and whether another app has too."""
        use = aliased(LeaseUseRow)
        shared = exists().where(
            col(use.tenant) == col(LeaseUseRow.tenant),
            col(use.connection_id) == col(LeaseUseRow.connection_id),
            col(use.app_id) != app_id,
        )
        mine = columns_equal(LeaseUseRow, tenant=tenant, app_id=app_id)
        query = (
            select(col(LeaseUseRow.connection_id), shared)
            .where(mine, col(LeaseUseRow.connection_id) > after)
            .order_by(col(LeaseUseRow.connection_id))
            .limit(limit)
        )
        return [(ConnectionId(id), bool(also)) for id, also in await self._connection.execute(query)]
