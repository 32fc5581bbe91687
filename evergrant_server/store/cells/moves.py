"""The row of a move on each side; the target's has what proves it to the source, sealed for workers alone."""

import json
from datetime import datetime

from sqlmodel import col

from evergrant_server.core.cells.moves import ENDED, WORKING, MoveState, TenantMove
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import MoveId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import fetch_all, find_one
from evergrant_server.store.keys import NO_CONNECTION, sealed_place
from evergrant_server.store.sealing import ColumnSealer


class TenantMoveRow(columns.IdTable, table=True):
    side: str
    peer: str
    state: str
    secret_hash: str
    by: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    paused_at: datetime | None = columns.timestamp()
    closed_at: datetime | None = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()
    counts: dict[str, int] = columns.json()
    root: str
    log: str
    problem: str
    sealed_access: Sealed | None = columns.sealed(columns.SealedBy(KeyPurpose.REFRESH))
    mac: str | None = None


class TenantMoves(AuthenticatedRepository[TenantMove, MoveId]):
    _table, _model = TenantMoveRow, TenantMove

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        super().__init__(connection, sealer.ring)
        self._sealer = sealer

    async def add(self, move: TenantMove, access: dict[str, str] | None = None) -> None:
        """Add a side's move; `access`: what its worker reaches and verifies the other cell with.

        Raises Failure ALREADY_EXISTS, KEY_UNAVAILABLE.
        """
        sealed = None
        if access is not None:
            place = sealed_place(
                table_of(TenantMoveRow), "sealed_access", {"tenant": move.tenant, "id": move.id}
            )
            secret = Secret(json.dumps(access))
            sealed = await self._sealer.seal(KeyPurpose.REFRESH, NO_CONNECTION, place, secret)
        await self._add(move, f"Move {move.id}", sealed_access=sealed)

    async def access(self, move: TenantMove) -> dict[str, str]:
        """What `add` was given. Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN."""
        row = await find_one(self._connection, TenantMoveRow, tenant=move.tenant, id=move.id)
        if row is None or row["sealed_access"] is None:
            return {}
        place = sealed_place(table_of(TenantMoveRow), "sealed_access", row)
        opened = await self._sealer.open(KeyPurpose.REFRESH, NO_CONNECTION, place, row["sealed_access"])
        access: dict[str, str] = json.loads(opened.reveal())
        return access

    async def end(self, move: TenantMove, *, expected: int) -> TenantMove:
        """As `replace`, and what proves the target to the source is gone."""
        return await self._change(move, expected, sealed_access=None)

    async def require_state(self, move: TenantMove, *states: MoveState) -> None:
        """Hold the row until this transaction ends. Raises Failure NOT_FOUND unless it is in one of these
        states: another worker has gone on, or an operator has undone the move."""
        mine = self._where(tenant=move.tenant, id=move.id).with_for_update()
        rows = await fetch_all(self._connection, mine)
        if not rows or rows[0]["state"] not in states:
            raise Failure(ErrorCode.NOT_FOUND, f"The move {move.id} isn't in this state any more.")

    async def unfinished(self) -> list[TenantMove]:
        """Those for which a worker of this cell has something to do. Not checked."""
        working = self._where(col(TenantMoveRow.state).in_([state.value for state in WORKING]))
        return await self._all_unchecked(working.order_by(col(TenantMoveRow.created_at)).limit(100))

    async def open_of(self, tenant: Tenant) -> TenantMove | None:
        """The tenant's move that hasn't ended, as its row says."""
        moves = await self.page(tenant)
        return next((move for move in reversed(moves) if move.state not in ENDED), None)

    async def page(self, tenant: Tenant | None = None, limit: int = 500) -> list[TenantMove]:
        """Moves, the oldest first; of every tenant without one. Not checked."""
        mine = self._where() if tenant is None else self._where(tenant=tenant)
        return await self._all_unchecked(mine.order_by(col(TenantMoveRow.created_at)).limit(limit))
