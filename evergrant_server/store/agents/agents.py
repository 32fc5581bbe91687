"""Apps that are agents, which end with their time and with their sponsor; orders to stop one."""

from datetime import datetime

from sqlalchemy import Index, exists, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from evergrant_server.core.access import App
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AgentStopId, AppId, ConnectionId, PersonId, Tenant
from evergrant_server.store.access import AppRow, LeaseUseRow
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
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


class Agents(AuthenticatedRepository[App, AppId]):
    """The rows of `access` that have a sponsor."""

    _table, _model = AppRow, App

    async def require_active(self, app: App, now: datetime) -> None:
        """Raise Failure APP_DISABLED, AGENT_ENDED, or AUTHORITY_BROKEN for the sponsor's row."""
        if app.disabled:
            raise Failure(ErrorCode.APP_DISABLED)
        if not app.is_agent:
            return
        if app.is_over(now):
            raise Failure(ErrorCode.AGENT_ENDED, "The agent's time is over.")
        if not await self.has_active_sponsor(app):
            raise Failure(ErrorCode.AGENT_ENDED, f"The agent's sponsor {app.sponsor} is disabled or deleted.")

    async def has_active_sponsor(self, agent: App) -> bool:
        """Whether the app that answers for the agent is there and enabled; people always are."""
        if agent.sponsor_app is None:
            return True
        sponsor = await self.get(agent.tenant, agent.sponsor_app)
        return sponsor is not None and not sponsor.disabled

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[App]:
        """Agents sorted by name, after the name `after`. Not checked."""
        mine = self._where(col(AppRow.sponsor).is_not(None), tenant=tenant)
        return await self._page(mine, "name", after, limit)

    async def sponsored_by(self, tenant: Tenant, sponsor: AppId, limit: int) -> list[App]:
        """The agents that this app answers for. Not checked."""
        return await self._all_unchecked(self._where(tenant=tenant, sponsor_app=sponsor).limit(limit))

    async def of_person(self, tenant: Tenant, person: PersonId, limit: int) -> list[App]:
        """The agents that this person answers for, disabled ones too. Not checked."""
        mine = self._where(tenant=tenant, sponsor=f"person:{person}").order_by(col(AppRow.name))
        return await self._all_unchecked(mine.limit(limit))

    async def end_leases_of_sponsored(self, tenant: Tenant, sponsor: AppId) -> None:
        """Have each lease of an agent that this app answers for judged again: its revision moves."""
        next_one = {"revision": col(AppRow.revision) + 1}
        mine = columns_equal(AppRow, tenant=tenant, sponsor_app=sponsor)
        await self._run(update(AppRow).where(mine).values(next_one))


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
        """Connections that the app has leased, by id after `after`, and whether another app, which is
        there, has too."""
        use = aliased(LeaseUseRow)
        shared = exists().where(
            col(use.tenant) == col(LeaseUseRow.tenant),
            col(use.connection_id) == col(LeaseUseRow.connection_id),
            col(use.app_id) != app_id,
            col(use.app_id).in_(select(col(AppRow.id)).where(columns_equal(AppRow, tenant=tenant))),
        )
        mine = columns_equal(LeaseUseRow, tenant=tenant, app_id=app_id)
        query = (
            select(col(LeaseUseRow.connection_id), shared)
            .where(mine, col(LeaseUseRow.connection_id) > after)
            .order_by(col(LeaseUseRow.connection_id))
            .limit(limit)
        )
        return [(ConnectionId(id), bool(also)) for id, also in await self._connection.execute(query)]
