"""Workers on one host and on another, with one store and one connection among them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection
from evergrant_server.store import Store
from evergrant_server.telemetry import metrics
from tests.conformance.store.samples import granted
from tests.fakes.clock import SetClock
from tests.fakes.databases import clock, key_path, lent, ring, store
from tests.unit.activities.single_use.protocol_worker import Worker

__all__ = ["clock", "key_path", "ring", "store"]  # fixtures


@pytest_asyncio.fixture
async def database_url(tmp_path: Path) -> AsyncIterator[str]:
    async with lent("sqlite", tmp_path) as url:
        yield url


@pytest_asyncio.fixture
async def connection(store: Store) -> Connection:
    """It holds generation 1."""
    return await granted(store)


@pytest.fixture
def worker(store: Store, clock: SetClock, connection: Connection, tmp_path: Path) -> Worker:
    return Worker(store, clock, connection, tmp_path / "host")


@pytest.fixture
def neighbour(worker: Worker) -> Worker:
    return worker.beside()


@pytest.fixture
def far(store: Store, clock: SetClock, connection: Connection, tmp_path: Path) -> Worker:
    """A worker of another host, whose journal nobody here can see."""
    return Worker(store, clock, connection, tmp_path / "another-host")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The double sends that were counted."""
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_double_send", counted.append)
    return counted
