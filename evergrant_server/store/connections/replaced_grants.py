"""Replaced grants, sealed by their connection's refresh key until they are revoked."""

from datetime import datetime

from sqlalchemy import Index, and_, delete, func, select
from sqlmodel import col

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import ReplacedGrant
from evergrant_server.core.ids import ConnectionId, ReplacedGrantId, Tenant
from evergrant_server.crypto import AssociatedData, KeyPurpose, Sealed
from evergrant_server.store.connections.connections import PendingRevocation
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import ModelRepository, columns_equal, fetch_all, find_one
from evergrant_server.store.keys import sealed_place
from evergrant_server.store.sealing import SealedRepository


class ReplacedGrantRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "connection_id"),
        columns.partial_index("ix_replaced_grant_pending", "tenant", "connection_id", where="pending"),
    )
    connection_id: str
    integration_id: str
    generation: int | None = None
    account_hash: str | None = None
    pending: bool
    replaced_at: datetime = columns.timestamp()
    sealed_tokens: Sealed = columns.sealed(columns.SealedBy(KeyPurpose.REFRESH, "connection_id"))


_COLUMN = "sealed_tokens"


class ReplacedGrants(SealedRepository, ModelRepository[ReplacedGrant, ReplacedGrantId]):
    _table, _model = ReplacedGrantRow, ReplacedGrant

    async def add(self, replaced: ReplacedGrant, tokens: TokenSet) -> None:
        """Keep the tokens sealed with the connection's refresh key. Raises Failure KEY_UNAVAILABLE."""
        place = _place(replaced)
        sealed = await self._sealer.seal(
            KeyPurpose.REFRESH, replaced.connection_id, place, tokens.as_secret()
        )
        await self._add(replaced, f"The replaced grant {replaced.id}", **{_COLUMN: sealed})

    async def of_connection(self, tenant: Tenant, connection_id: ConnectionId) -> list[ReplacedGrant]:
        """Replaced grants of a connection, oldest first."""
        mine = self._where(tenant=tenant, connection_id=connection_id)
        return await self._all(mine.order_by(col(ReplacedGrantRow.replaced_at), col(ReplacedGrantRow.id)))

    async def tokens(self, replaced: ReplacedGrant) -> TokenSet:
        """Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, ReplacedGrantRow, tenant=replaced.tenant, id=replaced.id)
        sealed = b"" if row is None else row[_COLUMN]
        place = _place(replaced)
        opened = await self._sealer.open(KeyPurpose.REFRESH, replaced.connection_id, place, sealed)
        return TokenSet.from_secret(opened)

    async def delete(
        self, tenant: Tenant, connection_id: ConnectionId, id: ReplacedGrantId | None = None
    ) -> int:
        """Forget one, or all of a connection. Says how many there were."""
        mine = columns_equal(ReplacedGrantRow, tenant=tenant, connection_id=connection_id)
        if id is not None:
            mine = columns_equal(ReplacedGrantRow, tenant=tenant, id=id)
        return await self._run(delete(ReplacedGrantRow).where(mine))

    async def pending_since_before(self, moment: datetime, limit: int = 500) -> list[PendingRevocation]:
        """Connections of every tenant with a grant that is to be revoked since before then, oldest first."""
        row, connection = table_of(ReplacedGrantRow).c, table_of(ConnectionRow).c
        since = func.min(row.replaced_at).label("since")
        query = (
            select(row.tenant, connection.id, connection.integration, since)
            .join_from(
                table_of(ReplacedGrantRow),
                table_of(ConnectionRow),
                and_(connection.tenant == row.tenant, connection.id == row.connection_id),
            )
            .where(row.pending, row.replaced_at < moment)
            .group_by(row.tenant, connection.id, connection.integration)
            .order_by(since, connection.id)
        )
        return [PendingRevocation(**row) for row in await fetch_all(self._connection, query.limit(limit))]


def _place(replaced: ReplacedGrant) -> AssociatedData:
    return sealed_place(table_of(ReplacedGrantRow), _COLUMN, {"tenant": replaced.tenant, "id": replaced.id})
