"""The engine: how each database is opened, and how its transactions begin."""

import asyncio
import sqlite3
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import aiosqlite
from aiosqlite.core import (
    _connection_worker_thread as driver_thread,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]  # no public name
)
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from evergrant_server.core.errors import ErrorCode, Failure

_BUSY_MS = 5_000  # how long SQLite waits for another process's write
_PG_SETTINGS = {
    "application_name": "evergrant",
    "timezone": "UTC",
    "statement_timeout": "15000",  # ms
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "15000",
}
_PRAGMAS = (
    f"busy_timeout={_BUSY_MS}",
    "journal_mode=WAL",
    "synchronous=FULL",  # an intent must survive a power cut
    "foreign_keys=ON",
    "secure_delete=ON",  # shredded keys don't stay in free pages
)
BEGIN_OPTION = "evergrant_begin"  # execution option: what SQLite begins a transaction with; "" begins none


def parse_url(url: str) -> URL:
    """The URL with its async driver. Raises Failure STORE_UNAVAILABLE for anything else."""
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):
        raise _unusable("it is not a database URL") from None
    match made.drivername:
        case "sqlite" | "sqlite+aiosqlite":
            if not made.database or made.database == ":memory:":
                raise _unusable("SQLite needs a file")
            return made.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return made.set(drivername="postgresql+asyncpg")
        case other:
            raise _unusable(f"{other} is not sqlite+aiosqlite or postgresql+asyncpg")


def make_engine(url: str) -> AsyncEngine:
    """An engine whose statements never print their parameters and whose waits are all bounded."""
    made = parse_url(url)
    if made.get_backend_name() == "sqlite":
        file = made.database or ""

        async def opened() -> aiosqlite.Connection:
            return await _Connection(file)

        engine = create_async_engine(
            made, async_creator=opened, hide_parameters=True, pool_size=8, max_overflow=8, pool_timeout=10
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        made,
        hide_parameters=True,
        pool_size=8,
        max_overflow=8,
        pool_timeout=10,
        connect_args={"timeout": 5, "command_timeout": 20, "server_settings": _PG_SETTINGS},
    )


def sqlite_path(url: str) -> Path | None:
    """The database file of a SQLite URL; None for PostgreSQL."""
    made = parse_url(url)
    return Path(made.database or "") if made.get_backend_name() == "sqlite" else None


class _Connection(aiosqlite.Connection):
    """Stops once. When a task is cancelled twice SQLAlchemy stops its connection beside a `close`
    that is under way; the driver's `close` then stops it again, and waits for ever for a thread
    that has ended (aiosqlite 0.22)."""

    def __init__(self, file: str) -> None:
        super().__init__(lambda: sqlite3.connect(file, check_same_thread=False), iter_chunk_size=64)
        self._stopped = Event()
        # the driver types its futures by half
        arguments = (cast(Any, self._tx), self._stopped)  # pyright: ignore[reportUnknownMemberType]  # by half
        self._thread = Thread(target=_work, args=arguments, daemon=True)  # daemon as SQLAlchemy has it

    def stop(self) -> asyncio.Future[Any] | None:
        if self._stopped.is_set():
            return None
        self._stopped.set()
        # the driver types its futures by half
        return super().stop()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # by half


def _work(queue: Any, stopped: Event) -> None:
    """The driver's thread. When the loop has ended nobody waits for what was done meanwhile: the
    driver fails on telling it, and would leave what is queued undone and the file open."""
    while True:
        try:
            driver_thread(queue)
            return
        except RuntimeError:
            if stopped.is_set() and queue.empty():
                return


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin_sqlite` does
    try:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except BaseException:
        connection.close()  # the pool never gets to know it, and its thread would go on
        raise


def _begin_sqlite(connection: Connection) -> None:
    statement = connection.get_execution_options().get(BEGIN_OPTION, "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def _unusable(why: str) -> Failure:
    return Failure(ErrorCode.STORE_UNAVAILABLE, f"EVERGRANT_DATABASE_URL can't be used: {why}.")
