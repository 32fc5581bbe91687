"""Checks for operators: the database's clock, and whether the key ring fits."""

from datetime import datetime

from sqlalchemy import select, text
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyPurpose, KeyRing
from evergrant_server.store.database.rows import columns_equal, fetch_first
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, WrappedKey, unwrap
from evergrant_server.store.store import Store


async def database_time(store: Store) -> datetime | None:
    """The database's time; None for SQLite, which uses this host's clock."""
    if store.is_sqlite:
        return None
    async with store.autocommit() as connection:
        return (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()


async def unwrap_newest_tenant_key(store: Store, ring: KeyRing, purpose: KeyPurpose) -> str | None:
    """Unwrap the newest tenant key of a purpose; returns its id, None when there is none yet.

    Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN when this ring isn't the one it was made with.
    """
    query = (
        select(col(KeyRow.tenant), col(KeyRow.id), col(KeyRow.sealed_key))
        .where(columns_equal(KeyRow, purpose=purpose.value, connection_id=NO_CONNECTION))
        .order_by(col(KeyRow.created_at).desc())
        .limit(1)
    )
    async with store.autocommit() as connection:
        row = await fetch_first(connection, query)
    if row is None:
        return None
    key, sealed = row["id"], row["sealed_key"]
    return unwrap(ring, row["tenant"], purpose, WrappedKey(key, NO_CONNECTION, sealed, key, sealed)).id


async def require_matching_key_ring(store: Store, ring: KeyRing) -> None:
    """Raise Failure KEY_UNAVAILABLE when this ring doesn't open what the database holds.

    Checked at the start: otherwise the process would seal new rows under other keys than the old
    rows.
    """
    for purpose in KeyPurpose:
        if not ring.holds(purpose):
            continue
        try:
            await unwrap_newest_tenant_key(store, ring, purpose)
        except Failure as failure:
            if failure.code not in (ErrorCode.KEY_UNAVAILABLE, ErrorCode.SEAL_BROKEN):
                raise
            raise Failure(
                ErrorCode.KEY_UNAVAILABLE,
                f"{ring!r} doesn't open this database's keys ({failure.detail}) "
                "Set EVERGRANT_KEY_FILE to the key file that filled this database, or restore that file.",
                key_file="another database's",
            ) from None
