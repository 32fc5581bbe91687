"""PostgreSQL is away, or takes connections and answers nothing: every call is answered all the same."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.api.http import middleware
from evergrant_server.core.access import Action
from tests.fakes.api import Api, running_api
from tests.fakes.databases import Postgres, postgres_server

__all__ = ["postgres_server"]
SLACK_S, WITHIN_S = 1.0, 1.5
HANGS_S = 20  # without a deadline it takes far longer


class Between:
    """A socket before PostgreSQL's that can stop listening, or go on and say nothing."""

    def __init__(self, folder: Path, behind: Path) -> None:
        self._at = folder / ".s.PGSQL.5432"
        self._behind = behind / ".s.PGSQL.5432"
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._copies: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._taken, self._at)

    def say_nothing(self) -> None:
        self._flows.clear()

    async def stop(self) -> None:
        """As when the server is shut down: what was open is closed, and nothing listens."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._copies:
            task.cancel()
        for writer in self._open:
            writer.close()
        self._at.unlink(missing_ok=True)
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind)
        self._open |= {writer, behind_writer}
        for source, sink in ((reader, behind_writer), (behind_reader, writer)):
            task = asyncio.create_task(self._copied(source, sink))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    async def _copied(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            sink.write(data)
        sink.close()


@pytest_asyncio.fixture
async def between(postgres_server: Postgres, tmp_path: Path) -> AsyncIterator[tuple[Between, str]]:
    real = await postgres_server.lend()
    database, _, host = real.partition("?host=")
    standing = Between(tmp_path, Path(host))
    await standing.start()
    yield standing, f"{database}?host={tmp_path}"
    await standing.stop()
    await postgres_server.give_back(real)


@pytest_asyncio.fixture
async def api(between: tuple[Between, str], tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path, lease_wait=0.5, database_url=between[1]) as running:
        yield running


@pytest.mark.parametrize("trouble", ["stopped", "silent"])
async def test_every_call_is_answered_within_its_deadline(
    api: Api, between: tuple[Between, str], trouble: str, monkeypatch: pytest.MonkeyPatch
):
    connection, key = await api.active_for("pipeline", Action.TOKEN, Action.ADMIN)
    assert (await api.lease(key)).status_code == 200
    monkeypatch.setattr(middleware, "LEASE_SLACK_S", SLACK_S)
    monkeypatch.setattr(middleware, "RESPONSE_LIMIT_S", WITHIN_S)
    if trouble == "stopped":
        await between[0].stop()
    else:
        between[0].say_nothing()
    calls = {
        "a lease": lambda: api.lease(key),
        "another, of a longer token": lambda: api.lease(key, min_ttl=60),
        "a list": lambda: api.get("/v1/connections", key),
        "a revocation": lambda: api.post(f"/v1/connections/{connection.id}/revoke", key, {"reason": "left"}),
    }
    for what, call in calls.items():
        async with asyncio.timeout(HANGS_S):
            answer = await call()
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), (what, answer.text)
        assert int(answer.headers["retry-after"]) >= 1
    await between[0].stop()
