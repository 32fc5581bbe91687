"""Answers that came when their connection had been given up: sealed until they are verified."""

from sqlalchemy import delete
from sqlmodel import col

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use.attempt import LateTokens
from evergrant_server.crypto import AssociatedData, KeyPurpose
from evergrant_server.store.connections.tables import LateTokensRow
from evergrant_server.store.database.rows import ModelRepository, columns_equal, find_one
from evergrant_server.store.sealing import SealedRepository

_COLUMN = "sealed_tokens"


class LateTokenSets(SealedRepository, ModelRepository[LateTokens, AttemptId]):
    """Late answers of one transaction."""

    _table, _model = LateTokensRow, LateTokens

    async def add(self, late: LateTokens, tokens: TokenSet) -> bool:
        """Keep its tokens sealed with the connection's refresh key; False when they are kept already."""
        sealed = await self._sealer.seal(
            KeyPurpose.REFRESH, late.connection_id, _place(late), tokens.as_secret()
        )
        return await self._insert(late, **{_COLUMN: sealed})

    async def get(self, tenant: Tenant, id: AttemptId) -> LateTokens | None:
        return await self._one(tenant=tenant, attempt_id=id)

    async def of_connection(self, tenant: Tenant, connection_id: ConnectionId) -> list[LateTokens]:
        """Late tokens of a connection, newest first."""
        mine = self._where(tenant=tenant, connection_id=connection_id)
        return await self._all(mine.order_by(col(LateTokensRow.received_at).desc()))

    async def tokens(self, late: LateTokens) -> TokenSet:
        """Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, LateTokensRow, tenant=late.tenant, attempt_id=late.attempt_id)
        sealed = b"" if row is None else row[_COLUMN]
        opened = await self._sealer.open(KeyPurpose.REFRESH, late.connection_id, _place(late), sealed)
        return TokenSet.from_secret(opened)

    async def delete(
        self, tenant: Tenant, connection_id: ConnectionId, attempt_id: AttemptId | None = None
    ) -> None:
        """Delete the one of an attempt, or all of a connection: superseded or shredded."""
        mine = columns_equal(LateTokensRow, tenant=tenant, connection_id=connection_id)
        if attempt_id is not None:
            mine = columns_equal(LateTokensRow, tenant=tenant, attempt_id=attempt_id)
        await self._run(delete(LateTokensRow).where(mine))


def _place(late: LateTokens) -> AssociatedData:
    return AssociatedData(late.tenant, "late_tokens", late.attempt_id, _COLUMN, late.from_generation)
