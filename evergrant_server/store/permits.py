"""The rows of permits, and when each was last used: `access` changes them, with their app's revision."""

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import String, UniqueConstraint, cast, delete, func, select
from sqlmodel import Field, col

from evergrant_server.core.access import MOST_PERMITS, App, Effect, Permit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, PermitId, Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, authority_broken
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal


class PermitRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        UniqueConstraint("tenant", "app_id", "name"),
        columns.partial_index("ix_permit_expires", "tenant", "expires_at", where="expires_at IS NOT NULL"),
    )
    app_id: str
    name: str
    integration: str
    subjects: list[str] = columns.json()
    scope_ceiling: list[str] | None = columns.json()
    actions: list[str] = columns.json()
    created_at: datetime = columns.timestamp()
    mac: str | None = None
    effect: str
    mode: str
    provider: str
    connections: list[str] | None = columns.json()
    sources: list[str] | None = columns.json()
    scopes: list[str] | None = columns.json()
    exact_scopes: bool
    expires_at: datetime | None = columns.timestamp()
    purpose: str
    owner: str
    reason: str
    methods: list[str] | None = columns.json()
    paths: list[str] | None = columns.json()
    call_approval: bool
    tools: list[str] | None = columns.json()
    priority: str


class PermitUseRow(columns.TenantTable, table=True):
    permit_id: str = Field(primary_key=True)
    used_at: datetime = columns.timestamp()


class Permits(AuthenticatedRepository[Permit, PermitId]):
    _table, _model = PermitRow, Permit

    async def put(self, permit: Permit, *, expected: int | None) -> Permit:
        """Add (`expected` None) or change one. Raises Failure ALREADY_EXISTS, STORE_CONFLICT, NOT_FOUND."""
        if expected is None:
            mine = columns_equal(PermitRow, tenant=permit.tenant, app_id=permit.app_id)
            query = select(func.count()).select_from(PermitRow).where(mine)
            if (await self._connection.execute(query)).scalar_one() >= MOST_PERMITS:
                why = f"The app has {MOST_PERMITS} permits already: delete one, or name more subjects in one."
                raise Failure(ErrorCode.ALREADY_EXISTS, why)
        return await self._put(permit, f"Permit {permit.name!r}", expected)

    async def denies(self, tenant: Tenant, app_id: AppId) -> set[PermitId]:
        """The ids of an app's permits that deny."""
        mine = columns_equal(PermitRow, tenant=tenant, app_id=app_id, effect=Effect.DENY.value)
        return {
            PermitId(id) for (id,) in await self._connection.execute(select(col(PermitRow.id)).where(mine))
        }

    async def with_sources(self) -> int:
        """How many permits in all tenants look at the caller's address."""
        sources = cast(col(PermitRow.sources), String)
        query = select(func.count()).select_from(PermitRow).where(sources.is_not(None), sources != "null")
        return int((await self._connection.execute(query)).scalar_one())

    async def last_uses(self, tenant: Tenant, ids: Collection[str]) -> dict[str, datetime]:
        """When each of these permits last allowed something, by its id, to the minute."""
        mine = columns_equal(PermitUseRow, tenant=tenant) & col(PermitUseRow.permit_id).in_(ids)
        query = select(col(PermitUseRow.permit_id), col(PermitUseRow.used_at)).where(mine)
        return {id: at for id, at in await self._connection.execute(query)}

    async def delete_uses(self, *, tenant: Tenant, **equal: str) -> None:
        """Forget when these permits were last used."""
        ids = select(col(PermitRow.id)).where(columns_equal(PermitRow, tenant=tenant, **equal))
        used = columns_equal(PermitUseRow, tenant=tenant) & col(PermitUseRow.permit_id).in_(ids)
        await self._run(delete(PermitUseRow).where(used))


def require_denies(app: App, denies: Iterable[str]) -> None:
    """Raise Failure AUTHORITY_BROKEN that names the app unless each of its permits that deny is there."""
    missing = sorted(set(app.denies or ()) - set(denies))
    if missing:
        why = f"has lost its permits {', '.join(missing[:5])}, which deny: other than Evergrant deleted them"
        raise authority_broken("app", app.id, why)
