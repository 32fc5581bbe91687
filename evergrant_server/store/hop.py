"""Straight to the driver, inside a transaction of the store's: for statements too hot to be built."""

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


async def on_sqlite(connection: AsyncConnection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do all of `work` in the connection's own thread, with one hop there and back.

    It must neither begin nor end a transaction. Raises what sqlite3 raises.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    # aiosqlite hops once a statement, and offers no public way to do several in one
    return await driver._execute(work, driver._conn)


async def on_postgresql(connection: AsyncConnection) -> Any:
    """The connection as asyncpg's own, with its prepared statements cached by their text.

    SQLAlchemy begins only with its own first statement: use `transaction()` of what this returns.
    """
    return (await connection.get_raw_connection()).driver_connection
