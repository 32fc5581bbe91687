"""Definitions of providers that tenants add: one row for each version."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Select, UniqueConstraint, func, select, update
from sqlmodel import col

from evergrant_server.core.definition import Definition, DefinitionState
from evergrant_server.core.ids import DefinitionId, Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal


class DefinitionRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name", "version"), Index(None, "id", unique=True))
    name: str
    version: int
    document: dict[str, Any] = columns.json()
    state: str
    share: float
    rollout: dict[str, Any] = columns.json()
    findings: list[dict[str, Any]] = columns.json()
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None = None
    approved: bool | None = None
    reason: str | None = None
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


SERVING_STATES = tuple(state.value for state in DefinitionState if state.serves)
_OPEN = tuple(state.value for state in DefinitionState if state.in_progress)


class Definitions(AuthenticatedRepository[Definition, DefinitionId]):
    _table, _model = DefinitionRow, Definition

    async def add(self, definition: Definition) -> None:
        """Add a version. Raises Failure ALREADY_EXISTS when its number is taken."""
        name = f"Version {definition.version} of {definition.name}"
        await self._add(definition, name, **_json(definition))

    async def version(self, tenant: Tenant, name: str, version: int) -> Definition | None:
        return await self._one(tenant=tenant, name=name, version=version)

    async def serving(self, tenant: Tenant, name: str) -> list[Definition]:
        """Those that answer for connections of this provider now."""
        return await self._all(
            self._where(col(DefinitionRow.state).in_(SERVING_STATES), tenant=tenant, name=name)
        )

    async def open_version(self, tenant: Tenant, name: str) -> Definition | None:
        """The version of this provider that is under way, if one is."""
        return await self._first(self._open().where(columns_equal(DefinitionRow, tenant=tenant, name=name)))

    async def open_versions_of_all_tenants(self) -> list[Definition]:
        """Every version that is under way, of every tenant: reconcile gives them their workflow."""
        return await self._all_unchecked(self._open())

    async def versions(self, tenant: Tenant, name: str) -> list[Definition]:
        """Every version, the newest first."""
        mine = self._where(tenant=tenant, name=name)
        return await self._all_unchecked(mine.order_by(col(DefinitionRow.version).desc()))

    async def names(self, tenant: Tenant) -> list[str]:
        """Providers that this tenant has a definition of."""
        mine = columns_equal(DefinitionRow, tenant=tenant)
        query = select(col(DefinitionRow.name)).where(mine).distinct().order_by(col(DefinitionRow.name))
        return list((await self._connection.execute(query)).scalars())

    async def next_version(self, tenant: Tenant, name: str) -> int:
        mine = columns_equal(DefinitionRow, tenant=tenant, name=name)
        query = select(func.max(col(DefinitionRow.version))).where(mine)
        return ((await self._connection.execute(query)).scalar_one() or 0) + 1

    async def count_refresh(self, definition: Definition, *, good: bool) -> None:
        """One more refresh under a staged version. Not a change of the row: its revision stays."""
        column = DefinitionRow.succeeded if good else DefinitionRow.failed
        mine = columns_equal(
            DefinitionRow, tenant=definition.tenant, id=definition.id, share=definition.share
        )
        await self._run(update(DefinitionRow).where(mine).values({column: column + 1}))  # pyright: ignore[reportArgumentType]  # a column, for SQLAlchemy

    async def replace(self, definition: Definition, *, expected: int) -> Definition:
        return await self._change(definition, expected, **_json(definition))

    def _open(self) -> Select[Any]:
        return self._where(col(DefinitionRow.state).in_(_OPEN))


def _json(definition: Definition) -> dict[str, Any]:
    """The columns for which a list or a model of core is written as JSON."""
    return definition.model_dump(mode="json", include={"rollout", "findings"})
