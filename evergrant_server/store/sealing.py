"""Sealed columns of one transaction: which key seals what, and where that key is kept.

Root (key ring) -> tenant key (a row) -> connection key (a row) -> column. Secrets without
a connection are sealed by the tenant's intake key itself. No plain key outlives the call, but
for those that a single-use credential's answer will need (`UnwrappedKeys`).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from sqlalchemy import Executable, delete
from sqlmodel import col

from evergrant_server.core.errors import Failure
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
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    Id,
    Model,
    ModelRepository,
    Repository,
    Values,
    columns_equal,
    fetch_all,
    fetch_first,
    find_one,
    insert,
)
from evergrant_server.store.keys import (
    CURRENT_KEY,
    CURRENT_KEY_TO_SEAL,
    CURRENT_KEYS,
    KEY_BY_ID,
    MOST_HELD,
    NO_CONNECTION,
    STILL_CURRENT,
    KeyRow,
    WrappedKey,
    key_associated_data,
    sealed_place,
    unwrap,
)
from evergrant_server.store.root_keys import WrappedRoots


class UnwrappedKeys:
    """Keys of one connection and its tenant, unwrapped before an intent: committing its answer needs no key
    service.

    Doesn't print. Kept for one attempt, and dropped with it. A key may be replaced meanwhile: what seals with
    them looks in its transaction whether they are still the current ones (`ColumnSealer`).
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Mapping[tuple[str, KeyPurpose], SealingKey]) -> None:
        self._keys = keys  # by connection and purpose

    def current(self, purpose: KeyPurpose) -> SealingKey:
        """The only key of this purpose."""
        (key,) = (key for (_, of), key in self._keys.items() if of is purpose)
        return key

    def of(self, connection_id: str, purpose: KeyPurpose) -> SealingKey | None:
        return self._keys.get((connection_id, purpose))

    def items(self) -> list[tuple[tuple[str, KeyPurpose], SealingKey]]:
        """Each key, by its connection and purpose."""
        return list(self._keys.items())

    def merged_with(self, further: "UnwrappedKeys") -> "UnwrappedKeys":
        """With keys of other purposes."""
        return UnwrappedKeys({**self._keys, **further._keys})

    def __repr__(self) -> str:
        return f"UnwrappedKeys({', '.join(purpose for _, purpose in self._keys)})"


class KeyRows:
    """The wrapped keys of a connection and its tenant, as one query has read them: what they sealed opens
    without the database. Holds no plain key."""

    def __init__(self, ring: KeyRing, tenant: str) -> None:
        self._ring = ring
        self._tenant = tenant
        self._rows: dict[tuple[KeyPurpose, str], WrappedKey] = {}
        self._current: dict[tuple[KeyPurpose, str], WrappedKey] = {}

    def add(self, purpose: KeyPurpose, row: WrappedKey, *, current: bool = False) -> None:
        self._rows[purpose, row.id] = row
        if current:
            self._current[purpose, row.connection_id] = row

    def lacks(self, purpose: KeyPurpose, key_id: str) -> bool:
        return (purpose, key_id) not in self._rows

    def open(self, purpose: KeyPurpose, connection_id: str, place: AssociatedData, sealed: bytes) -> Secret:
        """As `ColumnSealer.open`."""
        row = self._rows.get((purpose, key_id_of(sealed, place)))
        return Secret(_opened(self._ring, purpose, connection_id, place, sealed, row).decode())

    def unwrapped(self, connection_id: str, purposes: Iterable[KeyPurpose]) -> UnwrappedKeys | None:
        """The connection's keys of these purposes; None when one wasn't made yet. Raises Failure
        KEY_UNAVAILABLE, SEAL_BROKEN."""
        current = {of: row for (of, id), row in self._current.items() if id == connection_id}
        if not current.keys() >= set(purposes):
            return None
        return UnwrappedKeys(
            {(connection_id, of): unwrap(self._ring, self._tenant, of, current[of]) for of in purposes}
        )


def _opened(
    ring: KeyRing,
    purpose: KeyPurpose,
    connection_id: str,
    place: AssociatedData,
    sealed: bytes,
    row: WrappedKey | None,
) -> bytes:
    """What the key of this row has sealed. Raises Failure SEAL_BROKEN or KEY_UNAVAILABLE that names it."""
    if not ring.holds(purpose):
        raise key_unavailable(place, f"the {ring.role} role doesn't hold the {purpose} purpose")
    if row is None:
        raise key_unavailable(place, f"its key {key_id_of(sealed, place)} is not in the store")
    if row.connection_id != connection_id:
        raise seal_broken(place, "was sealed with a key of another connection")
    return open_sealed(unwrap(ring, place.tenant, purpose, row), place, sealed)


def _wrapped_key(row: Values) -> WrappedKey | None:
    """The key of this row with the one above it; None: that one is not in the store."""
    key = (row["id"], row["connection_id"], row["sealed_key"])
    if row["connection_id"] == NO_CONNECTION:
        return WrappedKey(*key, row["id"], row["sealed_key"])
    return (
        None if row["wrapping_key"] is None else WrappedKey(*key, row["wrapping_key_id"], row["wrapping_key"])
    )


class ColumnSealer:
    """Seals and opens columns within one transaction; makes missing keys in the same one."""

    def __init__(
        self, connection: DatabaseConnection, ring: KeyRing, now: datetime, keys: UnwrappedKeys | None = None
    ) -> None:
        self._connection = connection
        self.ring = ring
        self._now = now
        self._unwrapped_keys = keys
        self._still_current: frozenset[str] | None = None

    async def read_keys(
        self, tenant: str, connection_id: str, sealed: Iterable[tuple[KeyPurpose, Sealed | None]] = ()
    ) -> KeyRows:
        """The current keys of a connection and its tenant, and those that have sealed these columns."""
        parameters = {"tenant": tenant, "connection_id": connection_id}
        keys = KeyRows(self.ring, tenant)
        for row in await fetch_all(self._connection, CURRENT_KEYS, parameters):
            wrapped = _wrapped_key(row)
            if wrapped is not None:
                keys.add(KeyPurpose(row["purpose"]), wrapped, current=True)
        for purpose, column in sealed:
            if column is None:
                continue
            with suppress(Failure):  # it names no key, or none that can be unwrapped: opening it reports that
                key_id = key_id_of(column, AssociatedData(tenant, "key", connection_id, "sealed_key"))
                if keys.lacks(purpose, key_id) and self.ring.holds(purpose):
                    row = await self._row(KEY_BY_ID, purpose, tenant=tenant, id=key_id)
                    if row is not None:
                        keys.add(purpose, row)
        return keys

    async def get_or_create_keys(
        self, tenant: str, connection_id: str, purposes: Iterable[KeyPurpose]
    ) -> UnwrappedKeys:
        """The connection's current keys, made when needed. Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN."""
        place = AssociatedData(tenant, "key", connection_id, "held")
        return UnwrappedKeys(
            {(connection_id, of): await self._current(of, connection_id, place) for of in purposes}
        )

    async def current_keys(self, tenant: str, held: UnwrappedKeys) -> UnwrappedKeys:
        """These keys, or in place of one that was replaced the current one. None of them is replaced before
        this transaction ends. Raises as `get_or_create_keys`."""
        current = await self._current_of(tenant, held)
        place = AssociatedData(tenant, "key", NO_CONNECTION, "held")
        return UnwrappedKeys(
            {
                (connection_id, of): key
                if key.id in current
                else await self._stored(of, connection_id, place)
                for (connection_id, of), key in held.items()
            }
        )

    async def seal(
        self, purpose: KeyPurpose, connection_id: str, place: AssociatedData, value: Secret
    ) -> Sealed:
        """Seal a column of a connection, or with NO_CONNECTION of the tenant; makes its key if needed."""
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
        known, key_id = self._known(connection_id, purpose), key_id_of(sealed, place)
        if known is not None and known.id == key_id:
            return open_sealed(known, place, sealed)
        row = None
        if self.ring.holds(purpose):
            row = await self._row(KEY_BY_ID, purpose, tenant=place.tenant, id=key_id)
        return _opened(self.ring, purpose, connection_id, place, sealed, row)

    async def find_key(
        self, purpose: KeyPurpose, tenant: str, connection_id: str, key_id: str | None = None
    ) -> SealingKey | None:
        """The connection's key with this id, without one the current key; None: the connection has none.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN.
        """
        if key_id is None:
            row = await self._current_row(tenant, purpose, connection_id)
        else:
            row = await self._row(KEY_BY_ID, purpose, tenant=tenant, id=key_id)
        if row is None or row.connection_id != connection_id:
            return None
        return unwrap(self.ring, tenant, purpose, row)

    async def destroy_keys(
        self, tenant: str, connection_id: str, purposes: Iterable[KeyPurpose] = KeyPurpose
    ) -> int:
        """Delete the connection's keys: what they sealed, also in a backup's rows, can't be opened."""
        keys = columns_equal(KeyRow, tenant=tenant, connection_id=connection_id)
        of_purposes = col(KeyRow.purpose).in_([purpose.value for purpose in purposes])
        gone = delete(KeyRow).where(keys, of_purposes, col(KeyRow.connection_id) != NO_CONNECTION)
        return (await self._connection.execute(gone)).rowcount

    async def _current(self, purpose: KeyPurpose, connection_id: str, place: AssociatedData) -> SealingKey:
        if not self.ring.holds(purpose):
            raise key_unavailable(place, f"the {self.ring.role} role doesn't hold the {purpose} purpose")
        known = self._known(connection_id, purpose)
        if known is not None and self._unwrapped_keys is not None:
            if self._still_current is None:
                self._still_current = await self._current_of(place.tenant, self._unwrapped_keys)
            if known.id in self._still_current:
                return known
        return await self._stored(purpose, connection_id, place)

    async def _current_of(self, tenant: str, held: UnwrappedKeys) -> frozenset[str]:
        """The ids of those that are current."""
        ids = [key.id for _, key in held.items()]
        named = {f"key_{number}": ids[number] if number < len(ids) else "" for number in range(MOST_HELD)}
        rows = await fetch_all(self._connection, STILL_CURRENT, {"tenant": tenant, **named})
        return frozenset(row["id"] for row in rows)

    async def _stored(self, purpose: KeyPurpose, connection_id: str, place: AssociatedData) -> SealingKey:
        rows = await self._current_row(place.tenant, purpose, connection_id)
        if rows is None:
            await self._create(place.tenant, purpose, connection_id, place)
            rows = await self._current_row(place.tenant, purpose, connection_id)
        if rows is None:
            raise key_unavailable(place, "its key vanished while it was being made")
        return unwrap(self.ring, place.tenant, purpose, rows)

    def _known(self, connection_id: str, purpose: KeyPurpose) -> SealingKey | None:
        return None if self._unwrapped_keys is None else self._unwrapped_keys.of(connection_id, purpose)

    async def _create(
        self, tenant: str, purpose: KeyPurpose, connection_id: str, for_place: AssociatedData
    ) -> None:
        """Add a key; when another writer was faster, theirs is the one (the index allows one)."""
        key = new_sealing_key("tky" if connection_id == NO_CONNECTION else "cky")
        place = key_associated_data(tenant, key.id, purpose, connection_id)
        if connection_id == NO_CONNECTION:
            parent, wrapped = self.ring.current_root_id(purpose), self.ring.wrap(purpose, place, key)
            root_keys = WrappedRoots(self._connection, self.ring)
            await root_keys.require_current(parent, ServicePurpose(purpose.of_roots))
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

    async def _current_row(self, tenant: str, purpose: KeyPurpose, connection_id: str) -> WrappedKey | None:
        query = CURRENT_KEY if connection_id == NO_CONNECTION else CURRENT_KEY_TO_SEAL
        return await self._row(query, purpose, tenant=tenant, connection_id=connection_id)

    async def _row(
        self, query: Executable, purpose: KeyPurpose, tenant: str, **equal: str
    ) -> WrappedKey | None:
        parameters = {"tenant": tenant, "purpose": purpose.value, **equal}
        row = await fetch_first(self._connection, query, parameters)
        if row is None:
            return None
        wrapped = _wrapped_key(row)
        if wrapped is None:
            place = key_associated_data(tenant, row["id"], purpose, row["connection_id"])
            raise key_unavailable(place, "the tenant key that wraps it is not in the store")
        return wrapped


class RowOwner(Protocol):
    """A value of core whose row has a tenant and an id."""

    @property
    def tenant(self) -> str: ...

    @property
    def id(self) -> str: ...


class SealedRepository(Repository):
    """The rows of one feature, with sealed columns, within one transaction."""

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        super().__init__(connection)
        self._sealer = sealer


class IntakeRepository(SealedRepository, ModelRepository[Model, Id]):
    """The rows of one table with columns that are sealed by the tenant's key of `_purpose`."""

    _purpose = KeyPurpose.INTAKE

    async def _sealed(self, owner: RowOwner, secrets: dict[str, Secret | None]) -> dict[str, Sealed | None]:
        """The secrets of these columns, sealed for the row of `owner`."""
        return {
            column: None
            if secret is None
            else await self._sealer.seal(self._purpose, NO_CONNECTION, self._place(owner, column), secret)
            for column, secret in secrets.items()
        }

    async def _opened(self, owner: RowOwner, column: str) -> Secret | None:
        """The secret of this column, or None. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, self._table, tenant=owner.tenant, id=owner.id)
        if row is None or row[column] is None:
            return None
        place = self._place(owner, column)
        return await self._sealer.open(self._purpose, NO_CONNECTION, place, row[column])

    def _place(self, owner: RowOwner, column: str) -> AssociatedData:
        return sealed_place(table_of(self._table), column, {"tenant": owner.tenant, "id": owner.id})
