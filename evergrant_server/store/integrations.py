"""Integrations and their client secrets, sealed by the tenant's intake key."""

from sqlalchemy import delete, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from evergrant_server.core.access import Integration
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Lane, Place, Sealed
from evergrant_server.store.records import (
    Values,
    compare_and_set,
    every,
    insert,
    one,
    taken,
    values_of,
    where,
)
from evergrant_server.store.seals import NOBODY, Seals
from evergrant_server.store.tables import FINAL_STATES, ConnectionRow, IntegrationRow

_COLUMN = "sealed_client_secret"


class Integrations:
    """Integrations of one transaction."""

    def __init__(self, connection: AsyncConnection, seals: Seals) -> None:
        self._connection = connection
        self._seals = seals

    async def put(self, i: Integration, client_secret: Secret | None, *, expected: int | None) -> Integration:
        """Add (`expected` None) or change an integration; `client_secret` None keeps the old one.

        Raises Failure ALREADY_EXISTS when adding a name or id that is there, STORE_CONFLICT
        or NOT_FOUND when changing.
        """
        sealed: Values = {}
        if client_secret is not None:
            sealed = {_COLUMN: await self._sealed(i, client_secret)}
        if expected is None:
            if not await insert(self._connection, IntegrationRow, values_of(i, **{_COLUMN: None, **sealed})):
                raise taken(f"Integration {i.name!r}")
            return i
        return await self._change(i, expected, sealed)

    async def get(self, tenant: Tenant, id: IntegrationId) -> Integration | None:
        return await self._one(tenant=tenant, id=id)

    async def by_name(self, tenant: Tenant, name: str) -> Integration | None:
        return await self._one(tenant=tenant, name=name)

    async def find(self, id: IntegrationId) -> Integration | None:
        """The integration with this id in whichever tenant: the callback route knows no more."""
        return await self._one(id=id)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Integration]:
        """Integrations sorted by name, after the name `after`."""
        query = select(IntegrationRow).where(where(IntegrationRow, tenant=tenant))
        if after is not None:
            query = query.where(col(IntegrationRow.name) > after)
        rows = await every(self._connection, query.order_by(col(IntegrationRow.name)).limit(limit))
        return [Integration.model_validate(row) for row in rows]

    async def delete(self, tenant: Tenant, id: IntegrationId) -> None:
        """Delete it with its secret. Raises Failure NOT_FOUND, or STORE_CONFLICT while it has
        connections that are not ended: they could never be refreshed or revoked again."""
        live = where(ConnectionRow, tenant=tenant, integration_id=id)
        ended = col(ConnectionRow.state).in_(FINAL_STATES)
        if (await self._connection.execute(select(exists().where(live, ~ended)))).scalar_one():
            raise Failure(Code.STORE_CONFLICT, "The integration has live connections: revoke them first.")
        gone = await self._connection.execute(
            delete(IntegrationRow).where(where(IntegrationRow, tenant=tenant, id=id))
        )
        if gone.rowcount != 1:
            raise Failure(Code.NOT_FOUND, f"{id} doesn't exist.")

    async def client_secret(self, i: Integration) -> Secret | None:
        """The client secret, or None for a public client. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await one(self._connection, IntegrationRow, tenant=i.tenant, id=i.id)
        if row is None or row[_COLUMN] is None:
            return None
        return await self._seals.open(Lane.INTAKE, NOBODY, _place(i), row[_COLUMN])

    async def drop_client_secret(self, i: Integration, *, expected: int) -> Integration:
        """Make it a public client: the old secret is gone."""
        return await self._change(i, expected, {_COLUMN: None})

    async def replace(self, i: Integration, *, expected: int) -> Integration:
        """Write `i` if its row is still at revision `expected`. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(i, expected, {})

    async def _change(self, i: Integration, expected: int, sealed: Values) -> Integration:
        key = {"tenant": i.tenant, "id": i.id}
        values = values_of(i, **sealed)
        revision = await compare_and_set(self._connection, IntegrationRow, key, values, expected)
        return i.model_copy(update={"revision": revision})

    async def _sealed(self, i: Integration, secret: Secret) -> Sealed:
        return await self._seals.seal(Lane.INTAKE, NOBODY, _place(i), secret)

    async def _one(self, **equal: str) -> Integration | None:
        row = await one(self._connection, IntegrationRow, **equal)
        return None if row is None else Integration.model_validate(row)


def _place(i: Integration) -> Place:
    return Place(i.tenant, "integration", i.id, _COLUMN)
