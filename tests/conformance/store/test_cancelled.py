"""What SQLAlchemy does on SQLite when a task is cancelled twice while its connection is given up."""

import asyncio
from pathlib import Path

from evergrant_server.store.engine import make_engine
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
        _, waiting = await asyncio.wait((closing,), timeout=5)
        assert not waiting
    await engine.dispose()
