"""An idle installation reads nothing of what is stored, and writes nothing (invariant 12)."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store.database import sqlite
from evergrant_server.temporal_link import outbox_relay
from evergrant_server.wiring import heartbeat
from tests.fakes.databases import lent
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import Installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.rows import a_connection, an_integration

IDLE_CONNECTIONS = 2_000
WATCHED_S = 6.0


@pytest_asyncio.fixture
async def database_url(tmp_path: Path) -> AsyncIterator[str]:
    async with lent("sqlite", tmp_path) as url:
        yield url


@pytest.fixture
def settings() -> dict[str, Any]:
    """The product's own: the relays of other tests look more often."""
    return {"relay_interval": timedelta(seconds=1)}


class Work:
    """What SQLite does for this process."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.steps = 0  # of SQLite's machine, in tens: a query that reads every row needs some for each

    def step(self) -> None:
        self.steps += 1


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """The work of every connection that this process opens from here on."""
    done = Work()
    configure = sqlite.configure

    def traced(driver: sqlite3.Connection, record: object) -> None:
        configure(driver, record)
        driver.set_trace_callback(done.statements.append)
        driver.set_progress_handler(done.step, 10)

    monkeypatch.setattr(sqlite, "configure", traced)
    monkeypatch.setattr(heartbeat, "HEARTBEAT", timedelta(hours=1))  # it writes, whatever is stored
    # with each look at the outbox: otherwise every five seconds, and once a minute
    monkeypatch.setattr(outbox_relay, "_REPORT_INTERVAL_S", 0.5)
    monkeypatch.setattr(outbox_relay, "_REVOCATIONS_INTERVAL_S", 0.5)
    return done


async def watched(work: Work) -> tuple[Counter[str], int]:
    """What is sent while nobody asks anything, once the start has written, and the steps that it takes."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            work.statements.clear()
            await asyncio.sleep(2)
            if "BEGIN IMMEDIATE" not in work.statements:
                break
    work.statements.clear()
    before = work.steps
    await asyncio.sleep(WATCHED_S)
    return Counter(work.statements), work.steps - before


def of_relays(statements: Counter[str]) -> int:
    """All but the looks at the root keys, each of three statements: one in a quarter of a minute for each
    ring, which a window has or hasn't."""
    looks = sum(count for text, count in statements.items() if "FROM root_key" in text)
    return statements.total() - 3 * looks


async def test_an_idle_api_and_worker_send_as_few_statements_with_2000_connections_as_with_none(
    work: Work, place: Installation
):
    async with place.api():
        empty, empty_steps = await watched(work)
        now = place.parts.clock.now()
        integration = an_integration(TENANT, now)
        async with place.store.write() as tx:
            for number in range(IDLE_CONNECTIONS):
                names = {"id": ConnectionId(f"con_{number:026}"), "subject": f"user-{number}"}
                idle = a_connection(integration, now, **names).__replace__(state=LifecycleState.ACTIVE)
                await tx.connections.add(idle)
        full, full_steps = await watched(work)
    assert "BEGIN IMMEDIATE" not in {*empty, *full}, "a write transaction with nothing to write"
    looks = 2 * WATCHED_S + WATCHED_S // 5  # of two relays, one a second, and of the sender of audit streams
    assert empty["PRAGMA data_version"] <= looks + 2
    assert empty.total() - empty["PRAGMA data_version"] <= 5 * (looks + 2), (
        "the three metrics alone read anything"
    )
    assert of_relays(full) <= 1.1 * of_relays(empty) + 2 * 5, "a look more in each process"
    assert full_steps <= 1.1 * empty_steps + 10
