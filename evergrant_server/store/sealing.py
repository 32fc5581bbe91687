"""Sealed columns of one transaction: which key seals what, and where that key is kept.

Root (key ring) -> tenant key (a row) -> connection key (a row) -> column. Secrets without
a connection are sealed by the tenant's intake key itself. No plain key outlives the call, but
for those that a single-use credential's answer will need (`HeldKeys`).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    Executable,
    Index,
    and_,
    bindparam,
    delete,
    select,
    text,
)
from sqlmodel import Field, col

from evergrant_server.core.secret import Secret
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
from evergrant_server.crypto.envelope import key_unavailable, seal_broken
from evergrant_server.store.database.columns import (
    Row,
    optional_timestamp_column,
    sealed_column,
    table_of,
    timestamp_column,
)
from evergrant_server.store.database.connection import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, fetch_first, insert

NO_CONNECTION = ""  # the connection id of a tenant's own key


class KeyRow(Row, table=True):
    """A tenant's key (`connection_id` empty, wrapped by a root) or a connection's (by the tenant's)."""

    __table_args__ = (
        Index(
            "uq_key_current",
            "tenant",
            "connection_id",
            "purpose",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
            postgresql_where=text("retired_at IS NULL"),
        ),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    purpose: str
    connection_id: str
    wrapping_key_id: str
    sealed_key: Sealed = sealed_column()
    created_at: datetime = timestamp_column()
    retired_at: datetime | None = optional_timestamp_column()
    revision: int


_KEYS = table_of(KeyRow)
_WRAPPING_KEYS = _KEYS.alias()
_KEY = (
    select(
        _KEYS.c.id,
        _KEYS.c.connection_id,
        _KEYS.c.sealed_key,
        _WRAPPING_KEYS.c.id.label("wrapping_key_id"),
        _WRAPPING_KEYS.c.sealed_key.label("wrapping_key"),
    )
    .select_from(_KEYS)
    .outerjoin(
        _WRAPPING_KEYS,
        and_(
            _WRAPPING_KEYS.c.tenant == _KEYS.c.tenant,
            _WRAPPING_KEYS.c.purpose == _KEYS.c.purpose,
            _WRAPPING_KEYS.c.id == _KEYS.c.wrapping_key_id,
        ),
    )
    .where(_KEYS.c.tenant == bindparam("tenant"), _KEYS.c.purpose == bindparam("purpose"))
)
_KEY_BY_ID = _KEY.where(_KEYS.c.id == bindparam("id"))
_CURRENT_KEY = _KEY.where(_KEYS.c.connection_id == bindparam("connection_id"), _KEYS.c.retired_at.is_(None))


class WrappedKey(NamedTuple):
    """A key's row, and the row of the tenant key that wraps it (the same for a tenant key)."""

    id: str
    connection_id: str
    wrapped: Sealed
    tenant_key_id: str
    tenant_key: Sealed


class UnwrappedKeys:
    """Keys of one connection, unwrapped before an intent: its answer needs no key service.

    Doesn't print. Kept for one attempt, and dropped with it.
    """

    __slots__ = ("_by_id", "_current")

    def __init__(self, current: Mapping[KeyPurpose, SealingKey]) -> None:
        self._current = dict(current)
        self._by_id = {key.id: key for key in current.values()}

    def current(self, purpose: KeyPurpose) -> SealingKey:
        return self._current[purpose]

    def get(self, key_id: str) -> SealingKey | None:
        return self._by_id.get(key_id)

    def merged_with(self, other: "UnwrappedKeys") -> "UnwrappedKeys":
        """With keys of other purposes."""
        return UnwrappedKeys({**self._current, **other._current})

    def __repr__(self) -> str:
        return f"HeldKeys({', '.join(self._current)})"


def key_associated_data(tenant: str, key_id: str, purpose: KeyPurpose, connection_id: str) -> AssociatedData:
    """Where a wrapped key lives; its purpose and connection are part of the place."""
    return AssociatedData(tenant, "key", key_id, f"sealed_key:{purpose.value}:{connection_id}")


def unwrap(ring: KeyRing, tenant: str, purpose: KeyPurpose, rows: WrappedKey) -> SealingKey:
    """Unwrap a key through its tenant's. Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN."""
    above = key_associated_data(tenant, rows.tenant_key_id, purpose, NO_CONNECTION)
    tenant_key = ring.unwrap(purpose, above, rows.tenant_key_id, rows.tenant_key)
    if rows.connection_id == NO_CONNECTION:
        return tenant_key
    place = key_associated_data(tenant, rows.id, purpose, rows.connection_id)
    return SealingKey(rows.id, open_sealed(tenant_key, place, rows.wrapped))


class ColumnSealer:
    """Seals and opens columns within one transaction; makes missing keys in the same one."""

    def __init__(
        self, connection: DatabaseConnection, ring: KeyRing, now: datetime, held: UnwrappedKeys | None = None
    ) -> None:
        self._connection = connection
        self.ring = ring
        self._now = now
        self._held = held

    async def find_current_keys(
        self, tenant: str, connection_id: str, purposes: Iterable[KeyPurpose]
    ) -> UnwrappedKeys | None:
        """The connection's current keys, or None when one wasn't made yet. Raises as `hold` does."""
        keys: dict[KeyPurpose, SealingKey] = {}
        for purpose in purposes:
            rows = await self._current_row(tenant, purpose, connection_id)
            if rows is None:
                return None
            keys[purpose] = unwrap(self.ring, tenant, purpose, rows)
        return UnwrappedKeys(keys)

    async def get_or_create_keys(
        self, tenant: str, connection_id: str, purposes: Iterable[KeyPurpose]
    ) -> UnwrappedKeys:
        """The connection's current keys, made when needed. Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN."""
        place = AssociatedData(tenant, "key", connection_id, "held")
        return UnwrappedKeys(
            {purpose: await self._current(purpose, connection_id, place) for purpose in purposes}
        )

    async def seal(
        self, purpose: KeyPurpose, connection_id: str, place: AssociatedData, value: Secret
    ) -> Sealed:
        """Seal a column of a connection (or, with NOBODY, of the tenant), making its key when needed."""
        return seal(await self._current(purpose, connection_id, place), place, value.reveal().encode())

    async def open(
        self, purpose: KeyPurpose, connection_id: str, place: AssociatedData, sealed: bytes
    ) -> Secret:
        """Open a column. Raises Failure SEAL_BROKEN or KEY_UNAVAILABLE that names it."""
        return Secret((await self.open_bytes(purpose, connection_id, place, sealed)).decode())

    async def open_bytes(
        self, purpose: KeyPurpose, connection_id: str, place: AssociatedData, sealed: bytes
    ) -> bytes:
        """As `open`, for what is no text: a journal's entry."""
        if not self.ring.holds(purpose):
            raise key_unavailable(place, f"the {self.ring.role} role doesn't hold the {purpose} purpose")
        key_id = key_id_of(sealed, place)
        rows = await self._by_id(place.tenant, purpose, key_id)
        if rows is None:
            raise key_unavailable(place, f"its key {key_id} is not in the store")
        if rows.connection_id != connection_id:
            raise seal_broken(place, "was sealed with a key of another connection")
        key = self._unwrapped(place.tenant, purpose, rows)
        return open_sealed(key, place, sealed)

    async def destroy_keys(self, tenant: str, connection_id: str) -> int:
        """Delete the connection's keys: whatever they sealed, here or in a backup's rows, is gone."""
        keys = columns_equal(KeyRow, tenant=tenant, connection_id=connection_id)
        gone = delete(KeyRow).where(keys, col(KeyRow.connection_id) != NO_CONNECTION)
        return (await self._connection.execute(gone)).rowcount

    async def _current(self, purpose: KeyPurpose, connection_id: str, place: AssociatedData) -> SealingKey:
        if not self.ring.holds(purpose):
            raise key_unavailable(place, f"the {self.ring.role} role doesn't hold the {purpose} purpose")
        rows = await self._current_row(place.tenant, purpose, connection_id)
        if rows is None:
            await self._create(place.tenant, purpose, connection_id, place)
            rows = await self._current_row(place.tenant, purpose, connection_id)
        if rows is None:
            raise key_unavailable(place, "its key vanished while it was being made")
        return self._unwrapped(place.tenant, purpose, rows)

    def _unwrapped(self, tenant: str, purpose: KeyPurpose, rows: WrappedKey) -> SealingKey:
        held = self._held.get(rows.id) if self._held else None
        return held or unwrap(self.ring, tenant, purpose, rows)

    async def _create(
        self, tenant: str, purpose: KeyPurpose, connection_id: str, for_place: AssociatedData
    ) -> None:
        """Add a key; when another writer was faster, theirs is the one (the index allows one)."""
        key = new_sealing_key("tky" if connection_id == NO_CONNECTION else "cky")
        place = key_associated_data(tenant, key.id, purpose, connection_id)
        if connection_id == NO_CONNECTION:
            parent, wrapped = self.ring.current_root_id(purpose), self.ring.wrap(purpose, place, key)
        else:
            above = await self._current(purpose, NO_CONNECTION, for_place)
            parent, wrapped = above.id, seal(above, place, key.reveal())
        values = {
            "tenant": tenant,
            "id": key.id,
            "purpose": purpose.value,
            "connection_id": connection_id,
            "wrapping_key_id": parent,
            "sealed_key": wrapped,
            "created_at": self._now,
            "retired_at": None,
            "revision": 1,
        }
        await insert(self._connection, KeyRow, values)

    async def _by_id(self, tenant: str, purpose: KeyPurpose, key_id: str) -> WrappedKey | None:
        return await self._row(_KEY_BY_ID, purpose, tenant=tenant, id=key_id)

    async def _current_row(self, tenant: str, purpose: KeyPurpose, connection_id: str) -> WrappedKey | None:
        return await self._row(_CURRENT_KEY, purpose, tenant=tenant, connection_id=connection_id)

    async def _row(
        self, query: Executable, purpose: KeyPurpose, tenant: str, **equal: str
    ) -> WrappedKey | None:
        parameters = {"tenant": tenant, "purpose": purpose.value, **equal}
        row = await fetch_first(self._connection, query, parameters)
        if row is None:
            return None
        key = (row["id"], row["connection_id"], row["sealed_key"])
        if row["connection_id"] == NO_CONNECTION:
            return WrappedKey(*key, row["id"], row["sealed_key"])
        if row["wrapping_key"] is None:
            place = key_associated_data(tenant, row["id"], purpose, row["connection_id"])
            raise key_unavailable(place, "the tenant key that wraps it is not in the store")
        return WrappedKey(*key, row["wrapping_key_id"], row["wrapping_key"])
