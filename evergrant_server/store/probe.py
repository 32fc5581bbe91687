"""Questions of an operator about a store: its clock, its outbox, and whether its keys open."""

from datetime import datetime

from sqlalchemy import func, select, text
from sqlmodel import col

from evergrant_server.core.errors import Code, Failure
from evergrant_server.crypto import KeyRing, Lane
from evergrant_server.store.records import first, where
from evergrant_server.store.seals import NOBODY, KeyRows, unwrapped
from evergrant_server.store.store import Store
from evergrant_server.store.tables import KeyRow, OutboxRow


async def database_time(store: Store) -> datetime | None:
    """What time the database has; None for SQLite, which has this host's."""
    if store.sqlite:
        return None
    async with store.single() as connection:
        return (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()


async def waiting(store: Store) -> tuple[int, datetime | None]:
    """How many outbox messages are not delivered, and when the oldest of them was written."""
    undelivered = col(OutboxRow.delivered_at).is_(None)
    query = select(func.count(), func.min(OutboxRow.created_at)).where(undelivered)
    async with store.single() as connection:
        count, oldest = (await connection.execute(query)).one()
    return count, oldest


async def open_tenant_key(store: Store, ring: KeyRing, lane: Lane) -> str | None:
    """Unwrap the newest tenant key of a lane; returns its id, None when there is none yet.

    Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN when this ring isn't the one it was made with.
    """
    query = (
        select(col(KeyRow.tenant), col(KeyRow.id), col(KeyRow.sealed_key))
        .where(where(KeyRow, lane=lane.value, connection_id=NOBODY))
        .order_by(col(KeyRow.created_at).desc())
        .limit(1)
    )
    async with store.single() as connection:
        row = await first(connection, query)
    if row is None:
        return None
    key, sealed = row["id"], row["sealed_key"]
    return unwrapped(ring, row["tenant"], lane, KeyRows(key, NOBODY, sealed, key, sealed)).id


async def refuse_foreign_keys(store: Store, ring: KeyRing) -> None:
    """Raise Failure KEY_UNAVAILABLE when this ring doesn't open what the database holds.

    Found at the start: a process that went on would seal new rows with keys that the old ones
    don't know.
    """
    for lane in Lane:
        if not ring.holds(lane):
            continue
        try:
            await open_tenant_key(store, ring, lane)
        except Failure as failure:
            if failure.code not in (Code.KEY_UNAVAILABLE, Code.SEAL_BROKEN):
                raise
            raise Failure(
                Code.KEY_UNAVAILABLE,
                f"{ring!r} doesn't open this database's keys ({failure.detail}) "
                "Set EVERGRANT_KEY_FILE to the key file that filled this database, or restore that file.",
                key_file="another database's",
            ) from None
