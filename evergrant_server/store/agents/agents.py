"""Apps that are agents, which end with their time and with their sponsor."""

from datetime import datetime

from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.access import App
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.store.access import AppRow
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database.rows import columns_equal


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

    async def end_leases_of_sponsored(self, tenant: Tenant, sponsor: AppId) -> None:
        """Have each lease of an agent that this app answers for judged again: its revision moves."""
        next_one = {"revision": col(AppRow.revision) + 1}
        mine = columns_equal(AppRow, tenant=tenant, sponsor_app=sponsor)
        await self._run(update(AppRow).where(mine).values(next_one))
