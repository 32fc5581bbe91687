"""What SQLAlchemy does on SQLite when a task is cancelled twice while its connection is given up."""

import asyncio
import threading
from pathlib import Path
from typing import Any

from evergrant_server.store.engine import _Connection, make_engine
from tests.fakes.databases import sqlite_url


async def test_a_connection_that_is_stopped_while_it_closes_has_closed(tmp_path: Path):
    """Its close went on for ever, and so did every process whose loop waits for its tasks."""
    engine = make_engine(sqlite_url(tmp_path))
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)  # it has told its thread to close
        driver.stop()
        _, waiting = await asyncio.wait((closing,), timeout=20)
        assert not waiting
    await engine.dispose()


def test_a_loop_that_ends_before_its_last_statement_leaves_no_thread_that_failed(tmp_path: Path):
    """A thread that failed is a warning wherever the next garbage is collected, and a file left open."""
    goes_on = threading.Event()
    drivers: list[Any] = []

    async def leaves() -> None:
        drivers.append(await _Connection(str(tmp_path / "evergrant.db")))
        waiting = asyncio.create_task(drivers[0]._execute(goes_on.wait))
        await asyncio.sleep(0)  # the thread has its work
        waiting.cancel()

    failed: list[Any] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        asyncio.run(leaves())
        goes_on.set()
        drivers[0].stop()
        drivers[0]._thread.join(5)
    finally:
        threading.excepthook = before
    assert not drivers[0]._thread.is_alive()
    assert not failed
    assert drivers[0]._connection is None, "the file is closed"
