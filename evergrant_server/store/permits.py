"""The rows of permits, and when each was last used: `access` changes them, with their app's revision."""

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import Integer, String, UniqueConstraint, bindparam, cast, delete, func, select
from sqlmodel import Field, col

from evergrant_server.core.access import MOST_PERMITS, App, Effect, Permit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, PermitId, Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, authority_broken
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all


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


# what judges a request: built once
_OF_APP = columns_equal(PermitRow, tenant=bindparam("tenant"), app_id=bindparam("app_id"))
_AFTER = select(table_of(PermitRow)).where(_OF_APP, col(PermitRow.name) > bindparam("after"))
_BY_NAME = _AFTER.order_by(col(PermitRow.name))
_PAGE = _BY_NAME.limit(bindparam("limit", type_=Integer))
_DENIES = select(col(PermitRow.id)).where(_OF_APP, col(PermitRow.effect) == Effect.DENY.value)


class Permits(AuthenticatedRepository[Permit, PermitId]):
    _table, _model = PermitRow, Permit

    async def of_app(
        self, tenant: Tenant, app_id: AppId, after: str | None, limit: int | None
    ) -> list[Permit]:
        """The permits of an app sorted by name, after the name `after`; without a limit all."""
        of_app: Values = {"tenant": tenant, "app_id": app_id, "after": after or ""}
        if limit is None:
            return await self._all(_BY_NAME, of_app)
        return await self._all(_PAGE, {**of_app, "limit": limit})

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
        rows = await fetch_all(self._connection, _DENIES, {"tenant": tenant, "app_id": app_id})
        return {PermitId(row["id"]) for row in rows}

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
