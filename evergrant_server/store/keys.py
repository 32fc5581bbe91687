"""Keys of tenants and connections: each is a row, wrapped by the key above it."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import String, Table, and_, bindparam, func, literal, select

from evergrant_server.crypto import AssociatedData, KeyPurpose, KeyRing, Sealed, SealingKey, open_sealed
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of

NO_CONNECTION = ""  # the connection id of a tenant's own key
MOST_HELD = 3  # keys for one answer: of lease and refresh, and the tenant's of intake


class KeyRow(columns.IdTable, table=True):
    """A tenant's key (`connection_id` empty, wrapped by a root) or a connection's (by the tenant's)."""

    __table_args__ = (
        columns.partial_index(
            "uq_key_current", "tenant", "connection_id", "purpose", where="retired_at IS NULL", unique=True
        ),
    )
    purpose: str
    connection_id: str
    wrapping_key_id: str
    sealed_key: Sealed = columns.sealed(None)
    created_at: datetime = columns.timestamp()
    retired_at: datetime | None = columns.timestamp()


_KEYS = table_of(KeyRow)
_WRAPPING_KEYS = _KEYS.alias()
_KEY_COLUMNS = (
    select(
        _KEYS.c.id,
        _KEYS.c.purpose,
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
)
_KEY = _KEY_COLUMNS.where(_KEYS.c.tenant == bindparam("tenant"), _KEYS.c.purpose == bindparam("purpose"))
KEY_BY_ID = _KEY.where(_KEYS.c.id == bindparam("id"))
# Of a connection and its tenant, each with the key above it. Found by two indexes: a refresh reads no more
# of a tenant with a million connections.
CURRENT_KEYS = _KEY_COLUMNS.where(
    _KEYS.c.tenant == bindparam("tenant"),
    _KEYS.c.connection_id.in_((literal(NO_CONNECTION), bindparam("connection_id", type_=String()))),
    _KEYS.c.retired_at.is_(None),
)
# under which roots tenants' keys stand, and how many
ROOTS_IN_USE = (
    select(_KEYS.c.purpose, _KEYS.c.wrapping_key_id, func.count().label("keys"))
    .where(_KEYS.c.connection_id == NO_CONNECTION)
    .group_by(_KEYS.c.purpose, _KEYS.c.wrapping_key_id)
    .order_by(_KEYS.c.purpose, _KEYS.c.wrapping_key_id)
)
CURRENT_KEY = _KEY.where(_KEYS.c.connection_id == bindparam("connection_id"), _KEYS.c.retired_at.is_(None))
# What is sealed with a connection's key holds that key's row until it is committed: a rotation waits for it,
# and then seals it anew. Every transaction of a tenant would hold the tenant's row: see `key_rotation`
CURRENT_KEY_TO_SEAL = CURRENT_KEY.with_for_update(read=True, of=_KEYS)
STILL_CURRENT = (
    select(_KEYS.c.id)
    .where(
        _KEYS.c.tenant == bindparam("tenant"),
        _KEYS.c.id.in_([bindparam(f"key_{number}") for number in range(MOST_HELD)]),
        _KEYS.c.retired_at.is_(None),
    )
    .with_for_update(read=True)
)


class WrappedKey(NamedTuple):
    """A key's row, and the row of the tenant key that wraps it (the same for a tenant key)."""

    id: str
    connection_id: str
    wrapped: Sealed
    tenant_key_id: str
    tenant_key: Sealed


def key_associated_data(tenant: str, key_id: str, purpose: KeyPurpose, connection_id: str) -> AssociatedData:
    """What a wrapped key's seal is bound to, its purpose and connection among it."""
    return AssociatedData(tenant, "key", key_id, f"sealed_key:{purpose.value}:{connection_id}")


def unwrap(ring: KeyRing, tenant: str, purpose: KeyPurpose, rows: WrappedKey) -> SealingKey:
    """Unwrap a key through its tenant's. Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN."""
    above = key_associated_data(tenant, rows.tenant_key_id, purpose, NO_CONNECTION)
    tenant_key = ring.unwrap(purpose, above, rows.tenant_key_id, rows.tenant_key)
    if rows.connection_id == NO_CONNECTION:
        return tenant_key
    place = key_associated_data(tenant, rows.id, purpose, rows.connection_id)
    return SealingKey(rows.id, open_sealed(tenant_key, place, rows.wrapped))


@cache
def _sealed_by(table: Table, column: str) -> columns.SealedBy:
    by: columns.SealedBy = table.c[column].info[columns.SEALED_BY]
    return by


def sealed_place(table: Table, column: str, row: Mapping[str, Any]) -> AssociatedData:
    """What the seal of a column's value in this row is bound to."""
    by = _sealed_by(table, column)
    name = "/".join([row[part] for part in by.row])
    return AssociatedData(
        row["tenant"], table.name, name, column, 0 if by.generation is None else row[by.generation]
    )
