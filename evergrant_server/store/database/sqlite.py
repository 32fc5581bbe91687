"""SQLite through the standard `sqlite3`: statements run on the event loop, only waits leave it.

A statement takes microseconds and a hop to another thread a hundred, so each runs where it is
called. What can take long doesn't block the loop: opening the file and COMMIT (an fsync) run in
a thread, and BEGIN IMMEDIATE is retried between sleeps while another process writes.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import URL, Connection, CursorResult, Dialect, Executable, QueuePool, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from evergrant_server.store.database.errors import store_unavailable
from evergrant_server.store.database.hosts import DatabaseServers
from evergrant_server.store.database.plans import Plan, plan_of

P = ParamSpec("P")
T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
BUSY_MS = 5_000  # how long SQLite waits for another process's write
_CONNECTIONS = 16
_POOL_TIMEOUT_S = 10.0
_CHECKPOINT_S = 0.5  # from a commit to the copying of its pages
_LONGEST_LOG = 4_000  # pages; a longer write-ahead log is begun anew between two transactions
_PRAGMAS = (
    "journal_mode=WAL",
    "wal_autocheckpoint=0",  # no commit copies pages: see `Checkpoints`
    "synchronous=FULL",  # an intent must survive a power cut
    "foreign_keys=ON",
    "secure_delete=ON",  # shredded keys don't stay in free pages
)
_RETRY_DELAYS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.1)  # the last one repeats


class SqliteConnection:
    """As SQLAlchemy's AsyncConnection, but statements run at once, on the event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    @property
    def driver(self) -> sqlite3.Connection:
        """The driver's connection, inside the same transaction."""
        return _driver_of(self._connection)

    async def execute(
        self, statement: Executable, parameters: Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        return self._connection.execute(statement, parameters)

    def planned(self, statement: Executable, values: Mapping[str, Any]) -> tuple[Plan, sqlite3.Cursor] | None:
        """Run a statement that is compiled once; None: it has to be executed by SQLAlchemy."""
        plan = plan_of(self._connection, statement, values)
        return None if plan is None else (plan, plan.execute(self.driver, values))

    async def exec_driver_sql(self, statement: str) -> CursorResult[*tuple[Any, ...]]:
        return self._connection.exec_driver_sql(statement)

    async def run_sync(
        self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return fn(self._connection, *args, **kwargs)


class SqliteDatabase:
    """One SQLite file. One task of this process writes at a time, in the order in which they came."""

    is_sqlite = True

    def __init__(self, path: Path) -> None:
        self.path, self.servers = path, DatabaseServers(())
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            hide_parameters=True,
            poolclass=QueuePool,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_use_lifo=True,
            # autocommit: this class sends BEGIN itself
            connect_args={"check_same_thread": False, "isolation_level": None},
        )
        event.listen(self._engine, "do_connect", self._require_not_restored)
        event.listen(self._engine, "connect", configure)
        self._begin_anew()

    def in_pool(self, _: object) -> "SqliteDatabase":
        """Itself: no statement hangs, writers take turns, and a read keeps no connection across a wait."""
        return self

    def connections_in_use(self) -> dict[Any, int]:
        return {}

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[SqliteConnection]:
        async with self._connected() as connection:
            _driver_of(connection).execute("BEGIN")
            yield SqliteConnection(connection)

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[SqliteConnection]:
        async with self.writer, self._connected() as connection:
            driver = _driver_of(connection)
            if self.checkpoints.log_is_long:
                await self._in_thread(partial(self.checkpoints.begin_log_anew, driver))
            await _begin_immediate(driver)
            transaction = connection.begin()  # sends nothing: the driver is in autocommit mode
            yield SqliteConnection(connection)
            await self._in_thread(transaction.commit)
            self.checkpoints.note_commit()

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[SqliteConnection]:
        async with self._connected() as connection:
            yield SqliteConnection(connection)

    async def commits_seen(self) -> int | None:
        """A number that another process's or task's commit changes; reading it costs no transaction.

        One connection asks each time and writes nothing, because SQLite tells each only of the others.
        """
        if self._watch is None:
            async with self._free:  # the engine's pool would block the thread
                watch = await self._in_thread(self._engine.connect, discard=Connection.close)
                watch.detach()  # kept beside the pool
            if self._watch is None:
                self._watch = watch
            else:  # another task was faster
                watch.close()
        (version,) = _driver_of(self._watch).execute("PRAGMA data_version").fetchone()
        return version

    async def empty_log(self) -> bool:
        """Copy the write-ahead log into the file and empty it: what a page said before is gone then. False
        while an old state is read."""
        return await self._in_thread(self.checkpoints.empty_log)

    async def close(self) -> None:
        """Close every connection. Afterwards another event loop, or a forked process, may use it."""
        if self._watch is not None:
            self._watch.close()
        await self._in_thread(self.checkpoints.end)
        await self._in_thread(self._engine.dispose)
        self._thread.shutdown(wait=False)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._free = asyncio.Semaphore(_CONNECTIONS)  # the engine's pool would block the loop
        self.writer = asyncio.Lock()
        self.checkpoints = Checkpoints(self.path)
        self._watch: Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Connection]:
        """A connection of the pool; what is uncommitted at the end is rolled back."""
        await asyncio.sleep(0)  # a task that reads in a loop lets others run between its transactions
        try:
            async with asyncio.timeout(_POOL_TIMEOUT_S):
                await self._free.acquire()
        except TimeoutError:
            raise PoolTimeout from None
        try:
            idle = cast(QueuePool, self._engine.pool).checkedin()
            if idle:
                connection = self._engine.connect()
            else:
                connection = await self._in_thread(self._engine.connect, discard=Connection.close)
            with connection:
                yield connection
        finally:
            self._free.release()

    def _require_not_restored(self, *_: object) -> None:
        """Raise Failure STORE_UNAVAILABLE while a restore makes the file that takes this one's place: who
        opened this one would go on with a file that has been set aside."""
        copy = restoring(self.path)
        if copy.exists():
            repair = f"Wait for the restore's end. If none runs, restore again, or delete {copy}."
            raise store_unavailable("a backup is being restored in its place", repair)

    async def _in_thread(self, work: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        """Run `work` in the thread and wait for its end, even when the caller is cancelled meanwhile.

        `discard` takes the result that a cancelled caller can't take.
        """
        return await end_of(asyncio.get_running_loop().run_in_executor(self._thread, work), discard)


class Checkpoints:
    """Copies the pages of commits from the write-ahead log into the file, in a thread and on a connection of
    its own, so that no commit waits for it. It sleeps until there is a commit.

    Under load a writer always adds to the log while it is copied, so it would grow without end: the writer
    begins a long log anew itself, between two transactions, when little of it is left to be copied.
    """

    def __init__(self, path: Path) -> None:
        self.log_is_long = False
        self._path = path
        self._due, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None  # from the first commit on

    def note_commit(self) -> None:
        if not self._due.is_set():
            self._due.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
                self._thread.start()

    def begin_log_anew(self, driver: sqlite3.Connection) -> None:
        """Copy the rest, and have the next transaction write at the log's beginning. Does less while another
        process writes, or reads an old state."""
        self.log_is_long = False
        driver.execute("PRAGMA busy_timeout=0")  # or it would wait for readers, and all writers for it
        driver.execute("PRAGMA wal_checkpoint(RESTART)")

    def empty_log(self) -> bool:
        """False while readers need it. SQLite waits for them, but not for another checkpoint, such as that of
        this object's thread: it answers "busy" at once."""
        until = monotonic() + BUSY_MS / 1000
        with closing(self._connect()) as driver:
            while driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if monotonic() >= until:
                    return False
                sleep(_RETRY_DELAYS_S[-1])
        return True

    def end(self) -> None:
        self._ended.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        driver: sqlite3.Connection | None = None
        while self._due.wait() and not self._ended.wait(_CHECKPOINT_S):
            self._due.clear()
            if self._ended.is_set():  # `end` came in between: what it has set was cleared
                break
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


def restoring(path: Path) -> Path:
    """The copy of a backup that a restore verifies beside the database's file. While it is there, no process
    opens the database."""
    return path.with_name(f"{path.name}.restoring")


async def end_of(work: asyncio.Future[T], discard: Callable[[T], None] | None = None) -> T:
    """The result of `work`, whose end is awaited even when the caller is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        failed = work.exception()  # marked as retrieved: the caller gets its cancellation instead
        if discard is not None and failed is None:
            discard(work.result())
        raise cancelled
    return work.result()


def configure(driver: sqlite3.Connection, record: object) -> None:
    """Set up a connection, in the thread that opens it. SQLite doesn't wait by itself while another process
    changes a new file to WAL."""
    until = monotonic() + BUSY_MS / 1000
    for pragma in (f"busy_timeout={BUSY_MS}", *_PRAGMAS):
        while not _executed(driver, f"PRAGMA {pragma}", last=monotonic() >= until):
            sleep(_RETRY_DELAYS_S[-1])


async def _begin_immediate(driver: sqlite3.Connection) -> None:
    """Take the write lock of a connection of the pool. Raises as `take_write_lock`."""
    driver.execute("PRAGMA busy_timeout=0")  # SQLite's own wait would block the loop
    try:
        await take_write_lock(driver)
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_MS}")


async def take_write_lock(driver: sqlite3.Connection) -> None:
    """Begin. Raises sqlite3.OperationalError when another process keeps the lock for BUSY_MS."""
    until = monotonic() + BUSY_MS / 1000
    delays = iter(_RETRY_DELAYS_S)
    while not _executed(driver, "BEGIN IMMEDIATE", last=monotonic() >= until):
        await asyncio.sleep(next(delays, _RETRY_DELAYS_S[-1]))


def _executed(driver: sqlite3.Connection, statement: str, *, last: bool) -> bool:
    """False when another process holds the file, unless this try is the last."""
    try:
        driver.execute(statement)
    except sqlite3.OperationalError as error:
        if last or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # the low byte: any kind of busy
            raise
        return False
    return True


def _driver_of(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)
