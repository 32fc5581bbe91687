"""SQLite for transactions that follow each other without a pause: a connection and a thread that are kept.

Statements run on the event loop. COMMIT, an fsync, runs in a thread that waits at a bare lock.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from evergrant_server.store.database.sqlite import SqliteDatabase, configure, end_of, take_write_lock

T = TypeVar("T")


class KeptSqlite:
    """The connection of one task, the lease ledger's. It takes turns with the process's other writers."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._driver: sqlite3.Connection | None = None
        self._thread = _Thread("lease-commit")

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[sqlite3.Connection]:
        """An IMMEDIATE transaction: committed on a clean exit, rolled back on an exception.

        Raises sqlite3.Error; the next transaction has a new connection then.
        """
        async with self._database.writer:
            if self._driver is None:
                self._driver = await self._thread.run(self._connect, discard=sqlite3.Connection.close)
            driver = self._driver
            try:
                if self._database.checkpoints.log_is_long:
                    await self._thread.run(partial(self._database.checkpoints.begin_log_anew, driver))
                await take_write_lock(driver)
                yield driver
                await self._thread.run(partial(driver.execute, "COMMIT"))
                self._database.checkpoints.note_commit()
            except BaseException as error:
                if isinstance(error, sqlite3.Error):
                    self._driver = None
                    driver.close()
                elif driver.in_transaction:
                    driver.execute("ROLLBACK")
                raise

    async def close(self) -> None:
        """Close the connection and end the thread. No transaction may be open."""
        if self._driver is not None:
            await self._thread.run(self._driver.close)
            self._driver = None
        self._thread.end()

    def _connect(self) -> sqlite3.Connection:
        driver = sqlite3.connect(self._database.path, check_same_thread=False, isolation_level=None)
        configure(driver, None)
        driver.execute("PRAGMA busy_timeout=0")  # SQLite's own wait would block the loop
        return driver


class _Thread:
    """A thread that runs one call at a time. It waits at a bare lock: an executor's queue and futures take
    longer than a short COMMIT."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Lock()
        self._wanted.acquire()
        self._work: Callable[[], Any] | None = None
        self._done: asyncio.Future[Any] = self._loop.create_future()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, work: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        """Run `work` and wait for its end, even when the caller is cancelled meanwhile: then `discard` gets
        the result."""
        done = self._done = self._loop.create_future()
        self._work = work
        self._wanted.release()
        return await end_of(done, discard)

    def end(self) -> None:
        self._work = None
        self._wanted.release()

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            if self._work is None:
                return
            result, error = None, None
            try:
                result = self._work()
            except Exception as raised:
                error = raised
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: Exception | None) -> None:
        if error is None:
            self._done.set_result(result)
        else:
            self._done.set_exception(error)
