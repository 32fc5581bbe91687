"""SQLite for transactions that follow each other without a pause: a connection that is kept, and two threads.

Statements run on the event loop. COMMIT, an fsync, runs in a thread, and the copying of its pages from the
write-ahead log into the file in another, beside the commits.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from evergrant_server.store.database.sqlite import SqliteDatabase, configure, end_of, take_write_lock

T = TypeVar("T")
_CHECKPOINT_S = 0.5  # from a commit to the copying of its pages
_LONGEST_LOG = 4_000  # pages; a longer write-ahead log is begun anew between two transactions


class KeptSqlite:
    """The connection of one task, the lease ledger's. It takes turns with the process's other writers."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._driver: sqlite3.Connection | None = None
        self._thread = _Thread("lease-commit")
        self._checkpoints = _Checkpoints(database.path)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[sqlite3.Connection]:
        """An IMMEDIATE transaction: committed on a clean exit, rolled back on an exception.

        Raises sqlite3.Error; the next transaction has a new connection then.
        """
        async with self._database.writer:
            if self._driver is None:
                self._driver = await self._thread.run(self._connect)
            driver = self._driver
            try:
                if self._checkpoints.log_is_long:
                    await self._thread.run(partial(self._checkpoints.begin_log_anew, driver))
                await take_write_lock(driver)
                yield driver
                await self._thread.run(partial(driver.execute, "COMMIT"))
                self._checkpoints.note_commit()
            except BaseException as error:
                if isinstance(error, sqlite3.Error):
                    self._driver = None
                    driver.close()
                elif driver.in_transaction:
                    driver.execute("ROLLBACK")
                raise

    async def close(self) -> None:
        """Close the connection and end the threads. No transaction may be open."""
        if self._driver is not None:
            await self._thread.run(self._driver.close)
            self._driver = None
        self._thread.end()
        await asyncio.to_thread(self._checkpoints.end)

    def _connect(self) -> sqlite3.Connection:
        driver = sqlite3.connect(self._database.path, check_same_thread=False, isolation_level=None)
        configure(driver, None)
        driver.execute("PRAGMA busy_timeout=0")  # SQLite's own wait would block the loop
        driver.execute("PRAGMA wal_autocheckpoint=0")
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

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` and wait for its end, even when the caller is cancelled meanwhile."""
        done = self._done = self._loop.create_future()
        self._work = work
        self._wanted.release()
        return await end_of(done)

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


class _Checkpoints:
    """Copies the pages of commits from the write-ahead log into the file, in a thread and on a connection of
    its own. It sleeps until there is a commit.

    Under load a writer always adds to the log while it is copied, so it would grow without end: the writer
    begins a long log anew itself, between two transactions, when little of it is left to be copied.
    """

    def __init__(self, path: Path) -> None:
        self.log_is_long = False
        self._path = path
        self._due, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def note_commit(self) -> None:
        if not self._due.is_set():
            self._due.set()

    def begin_log_anew(self, driver: sqlite3.Connection) -> None:
        """Copy the rest, and have the next transaction write at the log's beginning. Does less while another
        process writes, or reads an old state."""
        self.log_is_long = False
        driver.execute("PRAGMA wal_checkpoint(RESTART)")

    def end(self) -> None:
        self._ended.set()
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        driver: sqlite3.Connection | None = None
        while self._due.wait() and not self._ended.wait(_CHECKPOINT_S):
            self._due.clear()
            with suppress(sqlite3.Error):  # tried again after the next commit
                driver = driver or self._connect()
                _, pages, _ = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self.log_is_long = pages > _LONGEST_LOG
        if driver is not None:
            driver.close()

    def _connect(self) -> sqlite3.Connection:
        driver = sqlite3.connect(self._path, isolation_level=None)
        configure(driver, None)
        return driver
