"""Definitions of providers that tenants add: one row for each version."""

from sqlalchemy import func, select, update
from sqlmodel import col

from evergrant_server.core.definition import Definition, DefinitionState
from evergrant_server.core.ids import DefinitionId, Tenant
from evergrant_server.store.database.rows import (
    Repository,
    Values,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_models,
    find_model,
    insert,
)
from evergrant_server.store.integrations.tables import DefinitionRow

_SERVING = tuple(state.value for state in DefinitionState if state.serves)
_OPEN = tuple(state.value for state in DefinitionState if state.in_progress)


class Definitions(Repository):
    """Definitions of one transaction."""

    async def add(self, definition: Definition) -> None:
        """Add a version. Raises Failure ALREADY_EXISTS when its number is taken."""
        if not await insert(self._connection, DefinitionRow, _values(definition)):
            raise already_exists(f"Version {definition.version} of {definition.name}")

    async def get(self, tenant: Tenant, id: DefinitionId) -> Definition | None:
        return await find_model(self._connection, Definition, DefinitionRow, tenant=tenant, id=id)

    async def version(self, tenant: Tenant, name: str, version: int) -> Definition | None:
        return await find_model(
            self._connection, Definition, DefinitionRow, tenant=tenant, name=name, version=version
        )

    async def serving(self, tenant: Tenant, name: str) -> list[Definition]:
        """Those that answer for connections of this provider now."""
        mine = columns_equal(DefinitionRow, tenant=tenant, name=name)
        return await self._some(select(DefinitionRow).where(mine, col(DefinitionRow.state).in_(_SERVING)))

    async def open_version(self, tenant: Tenant, name: str) -> Definition | None:
        """The version of this provider that is under way, if one is."""
        mine = columns_equal(DefinitionRow, tenant=tenant, name=name)
        found = await self._some(select(DefinitionRow).where(mine, col(DefinitionRow.state).in_(_OPEN)))
        return found[0] if found else None

    async def open_versions_of_all_tenants(self) -> list[Definition]:
        """Every version that is under way, of every tenant: reconcile gives them their workflow."""
        return await self._some(select(DefinitionRow).where(col(DefinitionRow.state).in_(_OPEN)))

    async def versions(self, tenant: Tenant, name: str) -> list[Definition]:
        """Every version, the newest first."""
        mine = columns_equal(DefinitionRow, tenant=tenant, name=name)
        newest = col(DefinitionRow.version).desc()
        return await self._some(select(DefinitionRow).where(mine).order_by(newest))

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
        await self._connection.execute(update(DefinitionRow).where(mine).values({column: column + 1}))  # pyright: ignore[reportArgumentType]  # a column, for SQLAlchemy

    async def replace(self, definition: Definition, *, expected: int) -> Definition:
        """Write a row if it is still at revision `expected`. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        key = {"tenant": definition.tenant, "id": definition.id}
        values = _values(definition)
        revision = await compare_and_set(self._connection, DefinitionRow, key, values, expected)
        return definition.model_copy(update={"revision": revision})

    async def _some(self, query: object) -> list[Definition]:
        return await fetch_models(self._connection, Definition, query)  # pyright: ignore[reportArgumentType]  # a select


def _values(definition: Definition) -> Values:
    """The columns; what is a list or a model of core is written as JSON."""
    plain = definition.model_dump(mode="json")
    return column_values(definition, rollout=plain["rollout"], findings=plain["findings"])
