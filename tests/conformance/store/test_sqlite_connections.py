"""SQLite on the event loop: nothing blocks it, and a cancelled task leaves no transaction open."""

import asyncio
import sqlite3
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
from sqlalchemy import QueuePool, event, text

from evergrant_server.core.errors import ErrorCode
from evergrant_server.store.database import sqlite
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.database.kept_sqlite import KeptSqlite
from evergrant_server.store.database.sqlite import SqliteDatabase
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S

COUNT = text("SELECT count(*) FROM noted")
NOTE = text("INSERT INTO noted VALUES (1)")


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "evergrant.db")
    async with opened.write() as connection:
        await connection.execute(text("CREATE TABLE noted (n INTEGER)"))
    yield opened
    await opened.close()


async def note(database: SqliteDatabase) -> None:
    async with database.write() as connection:
        await connection.execute(NOTE)


async def count(database: SqliteDatabase) -> int:
    async with database.read() as connection:
        return (await connection.execute(COUNT)).scalar_one()


def all_open(database: SqliteDatabase) -> bool:
    return cast(QueuePool, database._engine.pool).checkedout() == sqlite._CONNECTIONS


async def held(database: SqliteDatabase) -> threading.Event:
    """Keeps the thread busy until the event that it returns is set: a COMMIT stands behind this."""
    entered, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        goes_on.wait(PATIENCE_S)

    database._thread.submit(hold)
    while not entered.is_set():
        await asyncio.sleep(0.001)
    return goes_on


async def commit_waits(database: SqliteDatabase) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while database._thread._work_queue.empty():
            await asyncio.sleep(0.001)


async def test_a_commit_that_is_cancelled_ends_before_its_task_does(database: SqliteDatabase):
    goes_on = await held(database)
    writing = asyncio.create_task(note(database))
    await commit_waits(database)
    for _ in range(2):
        writing.cancel()
        await asyncio.sleep(0.01)
        assert not writing.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await count(database) == 1
    await note(database)
    assert await count(database) == 2


async def test_the_loop_runs_on_while_another_process_writes(database: SqliteDatabase, tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "evergrant.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(note(database))
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not writing.done()
        assert await count(database) == 0
        other.execute("COMMIT")
        await writing
        assert await count(database) == 1


async def test_a_writer_that_is_cancelled_while_another_process_writes_leaves_nothing_open(
    database: SqliteDatabase, tmp_path: Path
):
    with closing(sqlite3.connect(tmp_path / "evergrant.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(note(database))
        await asyncio.sleep(0.02)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    async with database.write() as connection:
        waits = connection.driver.execute("PRAGMA busy_timeout").fetchone()
    assert waits == (sqlite.BUSY_MS,)


async def test_more_transactions_than_connections_wait_and_then_fail(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "_POOL_TIMEOUT_S", 0.05)
    ends = asyncio.Event()

    async def reading() -> None:
        async with database.read():
            await ends.wait()

    readers = [asyncio.create_task(reading()) for _ in range(sqlite._CONNECTIONS)]
    async with asyncio.timeout(PATIENCE_S):
        while not all_open(database):
            await asyncio.sleep(0.001)
    with fails(ErrorCode.STORE_UNAVAILABLE, "connections are busy"), translate_errors():
        await count(database)
    ends.set()
    await asyncio.gather(*readers)
    assert await count(database) == 0


def test_a_loop_that_ends_during_a_commit_leaves_it_committed(tmp_path: Path):
    file = tmp_path / "evergrant.db"
    failed: list[object] = []
    database = SqliteDatabase(file)

    async def leaves() -> None:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE noted (n INTEGER)"))
        goes_on = await held(database)
        writing = asyncio.create_task(note(database))
        await commit_waits(database)
        assert not writing.done()
        threading.Timer(0.1, goes_on.set).start()  # when the loop waits for the tasks that it cancelled

    before, threading.excepthook = threading.excepthook, failed.append
    try:
        asyncio.run(leaves())
    finally:
        threading.excepthook = before
        asyncio.run(database.close())
    assert not failed
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT count(*) FROM noted").fetchone() == (1,)


async def test_a_caller_that_is_cancelled_while_a_connection_opens_leaves_none_open(database: SqliteDatabase):
    entered, go_on = threading.Event(), threading.Event()

    def configure(driver: sqlite3.Connection, record: object) -> None:
        entered.set()
        go_on.wait(PATIENCE_S)

    event.listen(database._engine, "connect", configure)
    async with database.read():  # the connection that the pool has
        reading = asyncio.create_task(count(database))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        reading.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert database._engine.pool.checkedout() == 0


async def test_a_ledger_that_is_cancelled_while_its_connection_opens_leaves_none_open(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
):
    kept, opened, goes_on = KeptSqlite(database), list[sqlite3.Connection](), threading.Event()
    connect = kept._connect

    def slow() -> sqlite3.Connection:
        opened.append(connect())
        goes_on.wait(PATIENCE_S)
        return opened[0]

    async def append() -> None:
        async with kept.transaction():
            raise AssertionError("it was cancelled before")

    monkeypatch.setattr(kept, "_connect", slow)
    task = asyncio.create_task(append())
    while not opened:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
    await kept.close()


async def test_a_commit_of_any_connection_is_seen_and_nothing_else(database: SqliteDatabase, tmp_path: Path):
    async def note_and_fail() -> None:
        async with database.write() as connection:
            await connection.execute(NOTE)
            raise ZeroDivisionError

    first = await database.commits_seen()
    await count(database)
    with pytest.raises(ZeroDivisionError):
        await note_and_fail()
    assert await database.commits_seen() == first, "it was rolled back"
    await note(database)
    own = await database.commits_seen()
    assert own != first
    with closing(sqlite3.connect(tmp_path / "evergrant.db")) as other:
        other.execute("INSERT INTO noted VALUES (2)")
        other.commit()
    assert await database.commits_seen() not in (first, own)


async def test_tasks_that_look_for_commits_at_once_leave_no_connection_open(database: SqliteDatabase):
    made: list[sqlite3.Connection] = []
    event.listen(database._engine, "connect", lambda driver, _: made.append(driver))
    versions = await asyncio.gather(*(database.commits_seen() for _ in range(3)))
    assert len(set(versions)) == 1
    await database.close()
    assert made
    for driver in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            driver.execute("SELECT 1")


async def test_the_first_look_for_commits_waits_for_a_connection_and_keeps_none(database: SqliteDatabase):
    ends = asyncio.Event()

    async def reading() -> None:
        async with database.read():
            await ends.wait()

    readers = [asyncio.create_task(reading()) for _ in range(sqlite._CONNECTIONS)]
    async with asyncio.timeout(PATIENCE_S):
        while not all_open(database):
            await asyncio.sleep(0.01)
        looking = asyncio.create_task(database.commits_seen())
        await asyncio.sleep(0.05)
        assert await database._in_thread(lambda: "free") == "free", "the thread that commits isn't blocked"
        assert not looking.done()
        ends.set()
        assert await looking is not None
        await asyncio.gather(*readers)
        ends.clear()
        readers = [asyncio.create_task(reading()) for _ in range(sqlite._CONNECTIONS)]
        while not all_open(database):
            await asyncio.sleep(0.01)
    ends.set()
    await asyncio.gather(*readers)


async def test_the_write_ahead_log_is_copied_beside_the_commits_and_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No commit does it: 4 MB are written, a log of 50 pages is long, and it stays far below what came."""
    monkeypatch.setattr(sqlite, "_CHECKPOINT_S", 0.005)
    monkeypatch.setattr(sqlite, "_LONGEST_LOG", 50)
    database, log = SqliteDatabase(tmp_path / "evergrant.db"), tmp_path / "evergrant.db-wal"
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(250):
            async with database.write() as connection:
                assert (await connection.exec_driver_sql("PRAGMA wal_autocheckpoint")).scalar_one() == 0
                await connection.execute(text("CREATE TABLE IF NOT EXISTS long (t TEXT)"))
                await connection.execute(text("INSERT INTO long VALUES (:t)"), {"t": "t" * 8_000})
    assert log.stat().st_size < 250 * 8_000
    await database.close()


async def test_the_log_is_emptied_once_another_checkpoint_is_over(database: SqliteDatabase, tmp_path: Path):
    # SQLite answers "busy" at once while another connection holds the checkpoint lock, of any process
    # (sqlite.org/c3ref/wal_checkpoint_v2.html); in the file that is the byte WAL_CKPT_LOCK of walformat.html
    await note(database)
    hold = "import fcntl,sys; file=open(sys.argv[1],'r+b'); fcntl.lockf(file,fcntl.LOCK_EX,1,121)"
    lock = f"{hold}; print(flush=True); input()"
    path = f"{tmp_path / 'evergrant.db'}-shm"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", lock, path, stdin=PIPE, stdout=PIPE)
    assert other.stdout is not None
    await other.stdout.readline()
    emptying = asyncio.create_task(database.empty_log())
    await asyncio.wait((emptying,), timeout=0.3)
    assert not emptying.done()
    await other.communicate(b"\n")
    assert await emptying
    assert (tmp_path / "evergrant.db-wal").stat().st_size == 0


async def test_a_log_that_someone_reads_is_not_emptied(
    database: SqliteDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    await note(database)
    with closing(sqlite3.connect(tmp_path / "evergrant.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM noted").fetchone()
        await note(database)
        assert not await database.empty_log()
    assert await database.empty_log()


async def test_without_commits_nothing_runs_beside(database: SqliteDatabase):
    """A process that only reads has no thread for checkpoints; one that has written has it until the end."""
    reading = SqliteDatabase(database.path)
    assert await count(reading) == 0
    assert reading.checkpoints._thread is None
    await reading.close()
    thread = database.checkpoints._thread
    assert thread is not None
    await database.close()
    assert not thread.is_alive()


async def test_a_close_in_the_instant_of_a_checkpoint_ends_the_thread(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
):
    """The thread takes note of the last commit just after `end` has woken it."""
    checkpoints, due = database.checkpoints, database.checkpoints._due
    clear = due.clear

    def clear_too_late() -> None:
        checkpoints._ended.set()
        due.set()
        clear()

    monkeypatch.setattr(due, "clear", clear_too_late)
    await note(database)
    thread = checkpoints._thread
    assert thread is not None
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive()
