"""What connections are known by at their providers: keyed hashes, to be found by and never read back."""

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from evergrant_server.core.connection import Connection
from evergrant_server.core.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.marks import marks_of, silent_names
from evergrant_server.core.receivers import Mark
from evergrant_server.crypto import KeyRing
from evergrant_server.store.elsewhere_tables import AccountMarkRow
from evergrant_server.store.records import every, insert, where
from evergrant_server.store.tables import FINAL_STATES, ConnectionRow


class Marks:
    """Marks of one transaction."""

    def __init__(self, connection: AsyncConnection, ring: KeyRing) -> None:
        self._connection = connection
        self._ring = ring

    async def follow(self, owner: Connection, tokens: TokenSet, grant: Grant, origin: Origin) -> None:
        """Make the marks those of this token reply; writes nothing when they are the same."""
        wanted = {
            name: self._hash(owner.tenant, owner.integration_id, mark)
            for name, mark in marks_of(tokens, grant).items()
        }
        mine = where(AccountMarkRow, tenant=owner.tenant, connection_id=owner.id)
        rows = await every(self._connection, select(AccountMarkRow).where(mine))
        had = {row["name"]: row["mark"] for row in rows}
        stay = silent_names(tokens, origin)
        gone = [name for name, mark in had.items() if name not in stay and wanted.get(name) != mark]
        if gone:
            old = delete(AccountMarkRow).where(mine, col(AccountMarkRow.name).in_(gone))
            await self._connection.execute(old)
        for name, mark in wanted.items():
            if had.get(name) != mark:
                values = {
                    "tenant": owner.tenant,
                    "connection_id": owner.id,
                    "name": name,
                    "integration_id": owner.integration_id,
                    "mark": mark,
                    "revision": 1,
                }
                await insert(self._connection, AccountMarkRow, values)

    async def bearers(
        self, tenant: Tenant, integration_id: IntegrationId, marks: frozenset[Mark]
    ) -> list[ConnectionId]:
        """Connections of this integration that bear every one of these marks; none for no marks."""
        if not marks:
            return []
        hashes = [self._hash(tenant, integration_id, mark) for mark in marks]
        found = where(AccountMarkRow, tenant=tenant, integration_id=integration_id)
        query = (
            select(col(AccountMarkRow.connection_id))
            .where(found, col(AccountMarkRow.mark).in_(hashes))
            .group_by(col(AccountMarkRow.connection_id))
            .having(func.count() == len(hashes))
            .order_by(col(AccountMarkRow.connection_id))
        )
        return [row["connection_id"] for row in await every(self._connection, query)]

    async def of_subject(
        self, tenant: Tenant, integration_id: IntegrationId, subject: str
    ) -> list[ConnectionId]:
        """Live connections of this integration whose subject this is."""
        mine = where(ConnectionRow, tenant=tenant, integration_id=integration_id, subject=subject)
        live = col(ConnectionRow.state).not_in(FINAL_STATES)
        query = select(col(ConnectionRow.id)).where(mine, live).order_by(col(ConnectionRow.id))
        return [row["id"] for row in await every(self._connection, query)]

    async def forget(self, tenant: Tenant, connection_id: ConnectionId) -> None:
        """Delete all of a connection."""
        mine = where(AccountMarkRow, tenant=tenant, connection_id=connection_id)
        await self._connection.execute(delete(AccountMarkRow).where(mine))

    def _hash(self, tenant: str, integration_id: str, mark: Mark) -> str:
        return self._ring.account_hash(tenant, integration_id, mark.name, mark.value)
