"""A tenant's own key: replaced, what older ones wrap or seal moved to it, and those destroyed.

Value by value, each by compare-and-set on the sealed bytes: no revision moves, and no authenticator covers
them. `RotatedKeys` is what rotations of tenants' and of connections' keys share.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import (
    AssociatedData,
    KeyPurpose,
    KeyRing,
    Sealed,
    SealingKey,
    key_id_of,
    new_sealing_key,
    open_sealed,
    seal,
)
from evergrant_server.crypto.envelope import encode_parts, key_unavailable
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, fetch_all, insert
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, key_associated_data
from evergrant_server.store.root_keys import WrappedRoots
from evergrant_server.store.rotation.resealing import (
    Moved,
    Pair,
    columns_of,
    name_of,
    opened,
    reseal,
    sealed_by,
    sealed_rows,
)

KEYS = table_of(KeyRow)
_K, _I = KEYS.c, table_of(IntegrationRow).c
# After this, a reply that never came is taken for lost with its host's disk, and holds no key up.
REPLY_KEPT = timedelta(days=7)
WORST_SKEW = timedelta(hours=1)  # between the clocks of two hosts


class Destroyed(NamedTuple):
    """A page of replaced keys. `kept`: a reply that one sealed may still come, or a value is left."""

    keys: int = 0
    kept: int = 0
    after: str | None = None


class KeyCounts(NamedTuple):
    """The keys of one purpose of a tenant, and what stands under those that were replaced."""

    key_id: str | None  # of the current one
    made_at: datetime | None
    replaced: int  # of the tenant's keys, that aren't destroyed yet
    left: int  # wrapped keys and values under these
    connection_keys: int
    replaced_connection_keys: int


class TenantKeys(NamedTuple):
    """A tenant's keys of one purpose, opened: for one page."""

    tenant: Tenant
    purpose: KeyPurpose
    current_id: str
    keys: dict[str, SealingKey]

    @property
    def current(self) -> SealingKey:
        return self.keys[self.current_id]

    @property
    def pairs(self) -> dict[str, Pair]:
        """Each older key with the one that takes its place, by its id."""
        return {id: Pair(key, self.current) for id, key in self.keys.items() if id != self.current_id}

    def opened(self, row: Values) -> bytes:
        """The key of this row of a connection. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        place = place_of(row)
        above = self.keys.get(row["wrapping_key_id"])
        if above is None:
            raise key_unavailable(place, "the tenant key that wraps it is not in the store")
        return open_sealed(above, place, row["sealed_key"])


class RotatedKeys:
    """Within one transaction. Needs the purposes that it rotates, which workers and operators hold.

    Every step may be repeated: what was done is found done.
    """

    def __init__(self, connection: DatabaseConnection, ring: KeyRing, now: datetime) -> None:
        self._connection, self._ring, self._now = connection, ring, now

    async def _rows(self, tenant: Tenant, purpose: KeyPurpose, *, for_update: bool = False) -> list[Values]:
        """The tenant's own keys of a purpose, the current one last."""
        mine = (_K.tenant == tenant, _K.purpose == purpose.value, _K.connection_id == NO_CONNECTION)
        query = select(KEYS).where(*mine)
        rows = await fetch_all(self._connection, query.with_for_update() if for_update else query)
        return sorted(rows, key=lambda row: row["retired_at"] is None)

    async def _opened(self, tenant: Tenant, purpose: KeyPurpose) -> TenantKeys | None:
        """Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN. None: there is none yet."""
        rows = await self._rows(tenant, purpose)
        if not rows or rows[-1]["retired_at"] is not None:
            return None
        keys = {
            row["id"]: self._ring.unwrap(purpose, place_of(row), row["id"], row["sealed_key"]) for row in rows
        }
        return TenantKeys(tenant, purpose, rows[-1]["id"], keys)

    async def _retire(self, rows: Sequence[Values]) -> None:
        mine = update(KEYS).where(_K.tenant == bindparam("of"), _K.id == bindparam("key"))
        values: Values = {"retired_at": self._now, "revision": _K.revision + 1}
        keys = [{"of": row["tenant"], "key": row["id"]} for row in rows]
        await self._connection.execute(mine.values(values), keys)

    async def _delete(self, tenant: Tenant, ids: Sequence[str]) -> None:
        if ids:
            await self._connection.execute(delete(KEYS).where(_K.tenant == tenant, _K.id.in_(ids)))

    def _new_row(self, place: Values, wrapping_key_id: str, wrapped: Sealed) -> Values:
        """The row of a key with these `tenant`, `purpose`, `connection_id` and `id`."""
        made = {"wrapping_key_id": wrapping_key_id, "sealed_key": wrapped, "created_at": self._now}
        return {**place, **made, "retired_at": None, "revision": 1}


class TenantKeyRotation(RotatedKeys):
    """Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN for a tenant's key that can't be opened."""

    async def replace(self, tenant: Tenant, purpose: KeyPurpose, rotation_id: str) -> bool:
        """Make the tenant's new key of this purpose the current one; False where there is none to replace, or
        this rotation has made it before."""
        rows = await self._rows(tenant, purpose, for_update=True)
        new_id = derived_key_id("tky", rotation_id, tenant, purpose)
        if not rows or rows[-1]["retired_at"] is not None or any(row["id"] == new_id for row in rows):
            return False
        await self._retire(rows[-1:])
        place = {"tenant": tenant, "id": new_id, "purpose": purpose.value, "connection_id": NO_CONNECTION}
        key = SealingKey(new_id, new_sealing_key("tky").reveal())
        wrapped = self._ring.wrap(purpose, place_of(place), key)
        roots = WrappedRoots(self._connection, self._ring)
        await roots.require_current(sealer_of(wrapped), ServicePurpose(purpose.of_roots))
        await insert(self._connection, KeyRow, self._new_row(place, sealer_of(wrapped), wrapped))
        return True

    async def move(
        self, tenant: Tenant, purpose: KeyPurpose, after: Sequence[str] | None, limit: int
    ) -> Moved:
        """Bring a page of what older keys of the tenant wrap or seal under its current one.

        `after` is the table of the page before, and the row that it ended with.
        """
        keys = await self._opened(tenant, purpose)
        if keys is None or not keys.pairs:
            return Moved()
        tables = {table.name: table for table in columns_of(purpose, of_connections=False)}
        names = ["", *tables]
        name = after[0] if after else names[0]
        behind = tuple(after[1:]) if after else ()
        if name == "":
            moved = await self._rewrap(keys, behind, limit)
        else:
            moved = await self._reseal_page(tables[name], keys, behind, limit)
        if moved.after is not None:
            return moved._replace(after=(name, *moved.after))
        following = names[names.index(name) + 1 :]
        return moved._replace(after=(following[0],) if following else None)

    async def count_all(self, tenant: Tenant, purpose: KeyPurpose) -> int:
        """How many keys and values stand under the tenant's keys of this purpose."""
        ids = [row["id"] for row in await self._rows(tenant, purpose)]
        return await self._count(tenant, purpose, ids) if ids else 0

    async def counts(self, tenant: Tenant, purpose: KeyPurpose) -> KeyCounts:
        """What a tenant has of this purpose. Opens nothing, so that every role may ask."""
        rows = await self._rows(tenant, purpose)
        older = [row["id"] for row in rows if row["retired_at"] is not None]
        current = rows[-1] if len(rows) > len(older) else None
        mine = (_K.tenant == tenant, _K.purpose == purpose.value, _K.connection_id != NO_CONNECTION)
        query = select(func.count(), func.count(_K.retired_at)).where(*mine)
        keys, replaced = (await self._connection.execute(query)).one()
        return KeyCounts(
            None if current is None else current["id"],
            None if current is None else current["created_at"],
            len(older),
            await self._count(tenant, purpose, older) if older else 0,
            keys - replaced,
            replaced,
        )

    async def older_than(self, moment: datetime, limit: int) -> list[tuple[Tenant, tuple[str, ...]]]:
        """Tenants of whose current keys one was made before then, the oldest first, with the purposes."""
        of_tenant = (_K.connection_id == NO_CONNECTION, _K.retired_at.is_(None))
        old = select(_K.tenant, func.min(_K.created_at).label("made_at"))
        old = old.where(*of_tenant, _K.created_at < moment).group_by(_K.tenant)
        tenants = await fetch_all(self._connection, old.order_by("made_at", _K.tenant).limit(limit))
        due: list[tuple[Tenant, tuple[str, ...]]] = []
        for row in tenants:
            query = select(_K.purpose).where(*of_tenant, _K.created_at < moment, _K.tenant == row["tenant"])
            purposes = await fetch_all(self._connection, query.order_by(_K.purpose))
            due.append((Tenant(row["tenant"]), tuple(key["purpose"] for key in purposes)))
        return due

    async def count_left(self, tenant: Tenant, purpose: KeyPurpose) -> int:
        """How many keys and values stand under a key of the tenant that isn't its current one. What no key
        opens isn't counted: nothing is lost with its key."""
        rows = await self._rows(tenant, purpose)
        if len(rows) < 2:
            return 0
        older = [row["id"] for row in rows[:-1]]
        left = await self._count(tenant, purpose, older)
        return left and await self._count_that_open(tenant, purpose, left)

    async def destroy(self, tenant: Tenant, purpose: KeyPurpose) -> Destroyed:
        """Delete the tenant's keys that were replaced, unless something is left under one, or a reply to a
        registration may lie in a journal."""
        rows = [row for row in await self._rows(tenant, purpose) if row["retired_at"] is not None]
        if not rows:
            return Destroyed()
        held = await self.count_left(tenant, purpose) > 0
        if purpose is KeyPurpose.INTAKE and not held:
            held = await self._waits_for_registration(tenant, max(row["retired_at"] for row in rows))
        if held:
            return Destroyed(kept=len(rows))
        await self._delete(tenant, [row["id"] for row in rows])
        return Destroyed(len(rows))

    async def _rewrap(self, keys: TenantKeys, behind: tuple[str, ...], limit: int) -> Moved:
        wrapped = _wrapped_by(keys.tenant, keys.purpose, list(keys.pairs))
        query = select(KEYS).where(wrapped, _K.id > "".join(behind)).order_by(_K.id).limit(limit)
        # a row that a refresh seals with is left to the next pass: neither waits for the other
        rows = await fetch_all(self._connection, query.with_for_update(skip_locked=True))
        changes, broken = list[Values](), list[Failure]()
        for row in rows:
            try:
                key = keys.opened(row)
            except Failure as failure:
                broken.append(failure)
                continue
            changes.append({"key": row["id"], "new_value": seal(keys.current, place_of(row), key)})
        if changes:
            mine = update(KEYS).where(_K.tenant == keys.tenant, _K.id == bindparam("key"))
            values: Values = {"sealed_key": bindparam("new_value"), "wrapping_key_id": keys.current_id}
            await self._connection.execute(mine.values({**values, "revision": _K.revision + 1}), changes)
        last = (rows[-1]["id"],) if len(rows) == limit else None
        return Moved(len(changes), last, broken=tuple(broken))

    async def _reseal_page(
        self, table: Table, keys: TenantKeys, behind: tuple[str, ...], limit: int
    ) -> Moved:
        columns, name = columns_of(keys.purpose, of_connections=False)[table], name_of(table)
        sealed = or_(*(sealed_by(table.c[column], list(keys.pairs)) for column in columns))
        query = sealed_rows(table, columns).where(table.c.tenant == keys.tenant, sealed)
        if behind:
            query = query.where(tuple_(*name) > tuple_(*map(literal, behind)))
        rows = await fetch_all(self._connection, query.order_by(*name).limit(limit))
        moved = await reseal(self._connection, table, columns, rows, keys.pairs)
        last = tuple(str(rows[-1][column.name]) for column in name) if len(rows) == limit else None
        return moved._replace(after=last)

    async def _count(self, tenant: Tenant, purpose: KeyPurpose, key_ids: Sequence[str]) -> int:
        counts = [select(func.count()).select_from(KEYS).where(_wrapped_by(tenant, purpose, key_ids))]
        for table, columns in columns_of(purpose, of_connections=False).items():
            sealed = or_(*(sealed_by(table.c[name], key_ids) for name in columns))
            counts.append(select(func.count()).select_from(table).where(table.c.tenant == tenant, sealed))
        return sum([(await self._connection.execute(query)).scalar_one() for query in counts])

    async def _count_that_open(self, tenant: Tenant, purpose: KeyPurpose, limit: int) -> int:
        keys = await self._opened(tenant, purpose)
        assert keys is not None
        pairs = keys.pairs
        wrapped = select(KEYS).where(_wrapped_by(tenant, purpose, list(pairs))).limit(limit)
        rows = await fetch_all(self._connection, wrapped)
        count = sum(_opens(partial(keys.opened, row)) for row in rows)
        for table, columns in columns_of(purpose, of_connections=False).items():
            sealed = or_(*(sealed_by(table.c[name], list(pairs)) for name in columns))
            query = sealed_rows(table, columns).where(table.c.tenant == tenant, sealed).limit(limit)
            for row in await fetch_all(self._connection, query):
                count += any(_opens(partial(opened, row, table, name, pairs)) for name in columns)
        return count

    async def _waits_for_registration(self, tenant: Tenant, replaced_at: datetime) -> bool:
        sent_at = _I.registration_sent_at
        sent = and_(sent_at > self._now - REPLY_KEPT, sent_at <= replaced_at + WORST_SKEW)
        query = select(func.count()).where(_I.tenant == tenant, sent)
        return (await self._connection.execute(query)).scalar_one() > 0


def _opens(value: Callable[[], object]) -> bool:
    try:
        return value() is not None
    except Failure:
        return False


def _wrapped_by(tenant: Tenant, purpose: KeyPurpose, key_ids: Sequence[str]) -> ColumnElement[bool]:
    return and_(
        _K.tenant == tenant,
        _K.purpose == purpose.value,
        _K.connection_id != NO_CONNECTION,
        _K.wrapping_key_id.in_(key_ids),
    )


def place_of(row: Values) -> AssociatedData:
    """What the seal of this row's key is bound to."""
    return key_associated_data(row["tenant"], row["id"], KeyPurpose(row["purpose"]), row["connection_id"])


def sealer_of(sealed: Sealed) -> str:
    """The id of the key that has sealed this. Raises Failure SEAL_BROKEN."""
    return key_id_of(sealed, AssociatedData("", "key", "", "sealed_key"))


def derived_key_id(prefix: str, rotation_id: str, *parts: str) -> str:
    """The id of the key that a rotation makes here: a second run of it makes no second key."""
    digest = hashlib.sha256(encode_parts("key rotation", rotation_id, *parts)).hexdigest()
    return f"{prefix}_{digest[:24]}"
