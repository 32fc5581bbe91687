"""Keys of connections: replaced, each with all that it has sealed in one transaction, and then destroyed.

In one transaction, so that no snapshot has a lease's row beside another key than the one that sealed it.
A transaction that seals with a connection's key holds its row until the commit (`keys.CURRENT_KEY_TO_SEAL`).
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, Table, and_, func, or_, select

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import KeyPurpose, Sealed, SealingKey, new_sealing_key, open_sealed, seal
from evergrant_server.store.connections.tables import AttemptRow, ConnectionRow
from evergrant_server.store.database.columns import SealedBy, table_of
from evergrant_server.store.database.rows import Values, fetch_all, insert_all
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, sealed_place
from evergrant_server.store.rotation.resealing import Moved, Pair, columns_of, reseal, sealed_rows
from evergrant_server.store.rotation.tenant_keys import (
    KEYS,
    REPLY_KEPT,
    WORST_SKEW,
    Destroyed,
    RotatedKeys,
    TenantKeys,
    derived_key_id,
    place_of,
    sealer_of,
)

_ATTEMPTS, _CONNECTIONS = table_of(AttemptRow), table_of(ConnectionRow)
_K, _A, _C = KEYS.c, _ATTEMPTS.c, _CONNECTIONS.c
_LOST_TRACK = (AttemptOutcome.SUPERSEDED.value, AttemptOutcome.GIVEN_UP.value)


class _Replaced(NamedTuple):
    """A connection's key and the one that takes its place."""

    connection_id: str
    purpose: KeyPurpose
    pair: Pair


class ConnectionKeyRotation(RotatedKeys):
    """Raises as `TenantKeyRotation`."""

    async def page(self, tenant: Tenant, after: str, limit: int) -> list[str]:
        """Connections behind the id `after` that have keys now, by their ids."""
        query = (
            select(_K.connection_id)
            .where(_K.tenant == tenant, _K.retired_at.is_(None), _K.connection_id > after)
            .distinct()
            .order_by(_K.connection_id)
            .limit(limit)
        )
        return [row["connection_id"] for row in await fetch_all(self._connection, query)]

    async def count_all(self, tenant: Tenant, purposes: Collection[KeyPurpose], only: str | None) -> int:
        """How many current keys there are, of all connections or of one."""
        mine = and_(_K.tenant == tenant, _K.connection_id != NO_CONNECTION, _K.retired_at.is_(None))
        query = select(func.count()).select_from(KEYS).where(mine, _K.purpose.in_(list(purposes)))
        if only is not None:
            query = query.where(_K.connection_id == only)
        return (await self._connection.execute(query)).scalar_one()

    async def replace(
        self,
        tenant: Tenant,
        connection_ids: Sequence[str],
        purposes: Collection[KeyPurpose],
        rotation_id: str,
        begun_at: datetime,
    ) -> Moved:
        """Give these connections new keys, in place of those from before `begun_at`, and seal with them all
        that the old ones have sealed. A key that another transaction holds is left to the next pass."""
        rows, skipped = await self._to_replace(tenant, connection_ids, purposes, rotation_id, begun_at)
        above: dict[KeyPurpose, TenantKeys] = {}
        for purpose in {KeyPurpose(row["purpose"]) for row in rows}:
            keys = await self._opened(tenant, purpose)
            assert keys is not None, "a connection's key has a tenant's above it"
            above[purpose] = keys
        replaced, broken = list[_Replaced](), list[Failure]()
        for row in rows:
            purpose = KeyPurpose(row["purpose"])
            try:
                old = SealingKey(row["id"], above[purpose].opened(row))
            except Failure as failure:
                broken.append(failure)
                continue
            new = SealingKey(_new_id(row, rotation_id), new_sealing_key("cky").reveal())
            replaced.append(_Replaced(row["connection_id"], purpose, Pair(old, new)))
        if not replaced:
            return Moved(skipped=skipped, broken=tuple(broken))
        olds = {key.pair.old.id for key in replaced}
        await self._retire([row for row in rows if row["id"] in olds])
        await insert_all(
            self._connection, KeyRow, [self._row_of(above[key.purpose], key) for key in replaced]
        )
        unsealed = await self._reseal(tenant, replaced)
        return Moved(len(replaced), skipped=skipped, broken=(*broken, *unsealed))

    async def move(self, tenant: Tenant, after: str, limit: int) -> Moved:
        """Seal anew what stands under a page of replaced keys: a process of an earlier version seals with the
        keys that it holds, without a look at which is current."""
        rows = await self._replaced(tenant, after, limit)
        last = (rows[-1]["id"],) if len(rows) == limit else None
        current = and_(
            _K.tenant == tenant,
            _K.connection_id.in_({row["connection_id"] for row in rows}),
            _K.retired_at.is_(None),
        )
        keys = await fetch_all(self._connection, select(KEYS).where(current).with_for_update(read=True))
        of_place = {(row["connection_id"], row["purpose"]): row for row in keys}
        moved = Moved(after=last)
        for purpose in sorted({KeyPurpose(row["purpose"]) for row in rows}):
            above = await self._opened(tenant, purpose)
            pairs: dict[str, Pair] = {}
            for row in rows:
                new = of_place.get((row["connection_id"], row["purpose"]))
                if above is not None and new is not None and row["purpose"] == purpose:
                    with suppress(Failure):  # what a key that can't be opened has sealed, none opens
                        olds = SealingKey(row["id"], above.opened(row))
                        pairs[row["id"]] = Pair(olds, SealingKey(new["id"], above.opened(new)))
            ids = {row["connection_id"] for row in rows if row["id"] in pairs}
            for table, columns in columns_of(purpose, of_connections=True).items():
                values = await fetch_all(self._connection, _of_connections(tenant, table, columns, ids))
                done = await reseal(self._connection, table, columns, values, pairs)
                moved = moved._replace(rows=moved.rows + done.rows, broken=moved.broken + done.broken)
        return moved

    async def count_left(self, tenant: Tenant, after: str, limit: int) -> Destroyed:
        """How many of a page of replaced keys are `kept` by a value. Nothing is destroyed."""
        rows = await self._replaced(tenant, after, limit)
        left = await self._still_seal(tenant, rows)
        return Destroyed(0, len(left), rows[-1]["id"] if len(rows) == limit else None)

    async def destroy(self, tenant: Tenant, after: str, limit: int) -> Destroyed:
        """Delete a page of connections' keys that were replaced: those alone that nothing needs any more."""
        rows = await self._replaced(tenant, after, limit)
        held = await self._replies_may_come(tenant, rows) | await self._still_seal(tenant, rows)
        gone = [row["id"] for row in rows if row["id"] not in held]
        await self._delete(tenant, gone)
        return Destroyed(len(gone), len(held), rows[-1]["id"] if len(rows) == limit else None)

    async def _replaced(self, tenant: Tenant, after: str, limit: int) -> list[Values]:
        replaced = and_(_K.tenant == tenant, _K.retired_at.is_not(None), _K.connection_id != NO_CONNECTION)
        query = select(KEYS).where(replaced, _K.id > after).order_by(_K.id).limit(limit)
        return await fetch_all(self._connection, query)

    async def _to_replace(
        self,
        tenant: Tenant,
        connection_ids: Sequence[str],
        purposes: Collection[KeyPurpose],
        rotation_id: str,
        begun_at: datetime,
    ) -> tuple[list[Values], int]:
        """The keys to replace, locked, and how many another transaction holds."""
        current = and_(
            _K.tenant == tenant,
            _K.connection_id.in_(connection_ids),
            _K.purpose.in_([purpose.value for purpose in purposes]),
            _K.retired_at.is_(None),
            _K.created_at <= begun_at + CLOCK_SKEW,
        )
        rows = await fetch_all(self._connection, select(KEYS).where(current))
        made = select(_K.id).where(
            _K.tenant == tenant, _K.id.in_([_new_id(row, rotation_id) for row in rows])
        )
        before = {row["id"] for row in await fetch_all(self._connection, made)}
        wanted = [row["id"] for row in rows if not {row["id"], _new_id(row, rotation_id)} & before]
        query = select(KEYS).where(current, _K.id.in_(wanted)).order_by(_K.id)
        locked = await fetch_all(self._connection, query.with_for_update(skip_locked=True))
        return locked, len(wanted) - len(locked)

    async def _reseal(self, tenant: Tenant, replaced: Sequence[_Replaced]) -> list[Failure]:
        broken, pairs = list[Failure](), {key.pair.old.id: key.pair for key in replaced}
        for purpose in sorted({key.purpose for key in replaced}):
            ids = [key.connection_id for key in replaced if key.purpose is purpose]
            for table, columns in columns_of(purpose, of_connections=True).items():
                rows = await fetch_all(self._connection, _of_connections(tenant, table, columns, ids))
                broken += (await reseal(self._connection, table, columns, rows, pairs)).broken
        return broken

    async def _replies_may_come(self, tenant: Tenant, keys: Sequence[Values]) -> set[str]:
        """Those of these keys that a reply in a worker's journal may be sealed by (docs/protocol.md)."""
        refresh = [row for row in keys if row["purpose"] == KeyPurpose.REFRESH]
        may_come = or_(
            _A.outcome.is_(None),
            and_(_A.outcome == AttemptOutcome.UNREAD.value, _A.from_generation == _C.generation),
            and_(_A.outcome.in_(_LOST_TRACK), _A.opened_at > self._now - REPLY_KEPT),
        )
        query = (
            select(_A.connection_id, func.min(_A.opened_at).label("opened_at"))
            .join_from(_ATTEMPTS, _CONNECTIONS, and_(_C.tenant == _A.tenant, _C.id == _A.connection_id))
            .where(
                _A.tenant == tenant, _A.connection_id.in_({row["connection_id"] for row in refresh}), may_come
            )
            .group_by(_A.connection_id)
        )
        opened = {row["connection_id"]: row["opened_at"] for row in await fetch_all(self._connection, query)}
        return {
            row["id"]
            for row in refresh
            if row["connection_id"] in opened
            and opened[row["connection_id"]] <= row["retired_at"] + WORST_SKEW
        }

    async def _still_seal(self, tenant: Tenant, keys: Sequence[Values]) -> set[str]:
        """Those of these keys under which a value is left that opens."""
        left, named = set[str](), {row["id"]: row for row in keys}
        for purpose in sorted({KeyPurpose(row["purpose"]) for row in keys}):
            ids = {row["connection_id"] for row in keys if row["purpose"] == purpose}
            for table, columns in columns_of(purpose, of_connections=True).items():
                for row in await fetch_all(self._connection, _of_connections(tenant, table, columns, ids)):
                    for column in columns:
                        key = None if row[column] is None else named.get(_sealer_of(row[column]))
                        if key is not None and await self._opens(tenant, purpose, key, row, table, column):
                            left.add(key["id"])
        return left

    async def _opens(
        self, tenant: Tenant, purpose: KeyPurpose, key: Values, row: Values, table: Table, column: str
    ) -> bool:
        above = await self._opened(tenant, purpose)
        try:
            opened = b"" if above is None else above.opened(key)
            open_sealed(SealingKey(key["id"], opened), sealed_place(table, column, row), row[column])
        except (Failure, ValueError):
            return False
        return True

    def _row_of(self, above: TenantKeys, key: _Replaced) -> Values:
        place = {
            "tenant": above.tenant,
            "id": key.pair.new.id,
            "purpose": key.purpose.value,
            "connection_id": key.connection_id,
        }
        wrapped = seal(above.current, place_of(place), key.pair.new.reveal())
        return self._new_row(place, above.current_id, wrapped)


def _of_connections(
    tenant: Tenant, table: Table, columns: Mapping[str, SealedBy], ids: Collection[str]
) -> Select[Any]:
    """The rows of these connections in a table that their keys seal."""
    (named,) = {by.connection for by in columns.values()}
    assert named is not None
    return sealed_rows(table, columns).where(table.c.tenant == tenant, table.c[named].in_(ids))


def _sealer_of(sealed: Sealed) -> str:
    """The id of the key that has sealed this; none for what is no sealed value."""
    try:
        return sealer_of(sealed)
    except Failure:
        return ""


def _new_id(row: Values, rotation_id: str) -> str:
    return derived_key_id("cky", rotation_id, row["tenant"], row["purpose"], row["connection_id"])
