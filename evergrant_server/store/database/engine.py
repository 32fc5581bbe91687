"""Opens the database that a URL names: SQLite or PostgreSQL, with the same methods.

`read` is one snapshot, `write` one change that is committed on a clean exit and rolled back on an
exception, `autocommit` runs single statements without a transaction around them. A database
belongs to one event loop.
"""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.sqlite import SqliteConnection, SqliteDatabase

_POSTGRES_SETTINGS = {
    "application_name": "evergrant",
    "timezone": "UTC",
    "statement_timeout": "15000",  # ms
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "15000",
}


class PostgresDatabase:
    """One PostgreSQL database: every wait is bounded, and no statement prints its parameters."""

    is_sqlite = False

    def __init__(self, url: URL, *, limits: bool = True) -> None:
        unlimited = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
        settings = _POSTGRES_SETTINGS if limits else _POSTGRES_SETTINGS | unlimited
        command_timeout = 20 if limits else None
        self._engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=8,
            max_overflow=8,
            pool_timeout=10,
            connect_args={"timeout": 5, "command_timeout": command_timeout, "server_settings": settings},
        )
        self._readers = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        async with self._readers.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection]:
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[AsyncConnection]:
        async with self._autocommit.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self._engine.dispose()


Database = SqliteDatabase | PostgresDatabase
DatabaseConnection = SqliteConnection | AsyncConnection  # inside one transaction


def open_database(url: str, *, limits: bool = True) -> Database:
    """The database behind the URL; it connects when it is first used. Raises Failure STORE_UNAVAILABLE.

    Without `limits` a statement may take as long as it does: building an index over a big table.
    """
    file = sqlite_path(url)
    return PostgresDatabase(_parse_url(url), limits=limits) if file is None else SqliteDatabase(file)


def sqlite_path(url: str) -> Path | None:
    """The database file of a SQLite URL; None for PostgreSQL. Raises Failure STORE_UNAVAILABLE."""
    parsed = _parse_url(url)
    return Path(parsed.database or "") if parsed.drivername == "sqlite" else None


def sqlite_driver(connection: DatabaseConnection) -> sqlite3.Connection:
    """sqlite3's own connection, inside the same transaction: for statements too hot to be built."""
    if not isinstance(connection, SqliteConnection):
        raise TypeError("this connection is not SQLite's")
    return connection.driver


async def asyncpg_driver(connection: DatabaseConnection) -> Any:
    """asyncpg's own connection, with its prepared statements cached by their text.

    SQLAlchemy begins only with its own first statement: use `transaction()` of what this returns.
    """
    if not isinstance(connection, AsyncConnection):
        raise TypeError("this connection is not PostgreSQL's")
    return (await connection.get_raw_connection()).driver_connection


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _unusable("it is not a database URL") from None
    match parsed.drivername:
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise _unusable("SQLite needs a file")
            return parsed
        case "postgresql" | "postgresql+asyncpg":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise _unusable(f"{other} is not sqlite or postgresql")


def _unusable(why: str) -> Failure:
    return Failure(ErrorCode.STORE_UNAVAILABLE, f"EVERGRANT_DATABASE_URL can't be used: {why}.")
