"""Whether each tenant is served. A row that is missing, or isn't Evergrant's, refuses its tenant."""

from datetime import datetime

from evergrant_server.core.access import MovePhase, TenantStanding
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, authority_broken
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import transactions_under_way

_MISSING = "is missing: python -m evergrant_server tenants disable, or tenants enable, writes it anew"


class TenantStandingRow(columns.IdTable, table=True):
    disabled: bool
    reason: str
    changed_at: datetime | None = columns.timestamp()
    phase: str = ""
    moved_to: str = ""
    mac: str | None = None


class Tenants(AuthenticatedRepository[TenantStanding, Tenant]):
    _table, _model = TenantStandingRow, TenantStanding

    async def begin(self, tenant: Tenant) -> None:
        """Add the row of a tenant that begins. One that is there stays as it is."""
        await self._insert(TenantStanding(tenant=tenant, id=tenant))

    async def is_enabled(self, tenant: Tenant) -> bool:
        """Raises Failure AUTHORITY_BROKEN."""
        return not (await self.standing(tenant)).disabled

    async def standing(self, tenant: Tenant) -> TenantStanding:
        """Raises Failure AUTHORITY_BROKEN."""
        standing = await self.get(tenant, tenant)
        if standing is None:
            raise authority_broken(table_of(TenantStandingRow).name, tenant, _MISSING)
        return standing

    async def require_enabled(self, tenant: Tenant) -> None:
        """Raises Failure TENANT_DISABLED, and as `require_here`."""
        if (await self.require_here(tenant)).disabled:
            raise Failure(ErrorCode.TENANT_DISABLED)

    async def require_here(self, tenant: Tenant) -> TenantStanding:
        """Raises Failure TENANT_MOVED, TENANT_ARRIVING, AUTHORITY_BROKEN."""
        standing = await self.standing(tenant)
        if standing.phase is MovePhase.MOVED:
            raise Failure(ErrorCode.TENANT_MOVED, moved_to=standing.moved_to)
        if standing.phase is MovePhase.ARRIVING:
            raise Failure(ErrorCode.TENANT_ARRIVING, retry_after=0.5)
        return standing

    async def under_way(self) -> frozenset[str]:
        """The transactions that may have read a standing as it was. Empty for SQLite: writers come one after
        another."""
        return await transactions_under_way(self._connection, [table_of(TenantStandingRow).name])

    async def is_elsewhere(self, tenant: Tenant) -> bool:
        """Whether it lives in another cell, or arrives from one, as its row says: it has no workflow here."""
        standing = await self.to_change(tenant)
        return standing is not None and standing.phase in (MovePhase.ARRIVING, MovePhase.MOVED)

    async def to_change(self, tenant: Tenant) -> TenantStanding | None:
        """The standing as its row says, with a broken authenticator too: a put repairs that."""
        return await self._one_unchecked(tenant=tenant, id=tenant)

    async def put(self, standing: TenantStanding, *, expected: int | None) -> TenantStanding:
        """Add (`expected` None) or change one. Raises Failure ALREADY_EXISTS, STORE_CONFLICT, NOT_FOUND."""
        return await self._put(standing, f"Tenant {standing.tenant}", expected)

    async def page(self, after: str | None = None, limit: int = 500) -> list[TenantStanding]:
        """Those of all tenants by name, after the name `after`. Not checked."""
        return await self._page(self._where(), "id", after, limit)
