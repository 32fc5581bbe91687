"""Answers that came when their connection had been given up: sealed until they are verified."""

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from evergrant_server.core.attempt import LateAnswer
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.crypto import Lane, Place
from evergrant_server.store.late_tables import LateAnswerRow
from evergrant_server.store.records import every, insert, one, values_of, where
from evergrant_server.store.seals import Seals

_COLUMN = "sealed_tokens"


class LateAnswers:
    """Late answers of one transaction."""

    def __init__(self, connection: AsyncConnection, seals: Seals) -> None:
        self._connection = connection
        self._seals = seals

    async def keep(self, late: LateAnswer, tokens: TokenSet) -> bool:
        """Keep its tokens sealed with the connection's refresh key; False when they are kept already."""
        sealed = await self._seals.seal(Lane.REFRESH, late.connection_id, _place(late), tokens.as_secret())
        return await insert(self._connection, LateAnswerRow, values_of(late, **{_COLUMN: sealed}))

    async def get(self, tenant: Tenant, attempt_id: AttemptId) -> LateAnswer | None:
        row = await one(self._connection, LateAnswerRow, tenant=tenant, attempt_id=attempt_id)
        return None if row is None else LateAnswer.model_validate(row)

    async def of(self, tenant: Tenant, connection_id: ConnectionId) -> list[LateAnswer]:
        """The newest first."""
        mine = where(LateAnswerRow, tenant=tenant, connection_id=connection_id)
        newest = col(LateAnswerRow.came_at).desc()
        rows = await every(self._connection, select(LateAnswerRow).where(mine).order_by(newest))
        return [LateAnswer.model_validate(row) for row in rows]

    async def tokens(self, late: LateAnswer) -> TokenSet:
        """Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await one(self._connection, LateAnswerRow, tenant=late.tenant, attempt_id=late.attempt_id)
        sealed = b"" if row is None else row[_COLUMN]
        opened = await self._seals.open(Lane.REFRESH, late.connection_id, _place(late), sealed)
        return TokenSet.from_secret(opened)

    async def drop(
        self, tenant: Tenant, connection_id: ConnectionId, attempt_id: AttemptId | None = None
    ) -> None:
        """Delete the one of an attempt, or all of a connection: superseded or shredded."""
        mine = where(LateAnswerRow, tenant=tenant, connection_id=connection_id)
        if attempt_id is not None:
            mine = where(LateAnswerRow, tenant=tenant, attempt_id=attempt_id)
        await self._connection.execute(delete(LateAnswerRow).where(mine))


def _place(late: LateAnswer) -> Place:
    return Place(late.tenant, "late_answer", late.attempt_id, _COLUMN, late.from_generation)
