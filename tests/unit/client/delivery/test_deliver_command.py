"""`evergrant deliver file` against a real API: written while a lease is allowed, deleted once it isn't."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from evergrant.cli import main

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.http_server import served
from tests.unit.client.conftest import Ended

Run = Callable[..., Awaitable[Ended]]


def text_of(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "server").mkdir()
    async with running_api(tmp_path / "server") as api:
        yield api


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


@pytest.fixture
async def connection(api: Api) -> Connection:
    return await api.active(await api.integration(), "canary-1")


@pytest.fixture
async def run(
    api: Api,
    connection: Connection,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> AsyncIterator[Run]:
    monkeypatch.setenv("EVERGRANT_API_KEY", await api.app_with("report", Action.TOKEN))
    async with served(api.app) as url:
        monkeypatch.setenv("EVERGRANT_URL", url)

        async def run(*words: str) -> Ended:
            command = ["deliver", "file", str(path), "crm", "user-1", "--once", *words]
            with pytest.raises(SystemExit) as ended:
                await asyncio.to_thread(main, command)
            printed = capfd.readouterr()
            assert "canary" not in printed.out + printed.err
            return Ended(int(ended.value.code or 0), printed.out, printed.err)

        yield run


async def revoke(api: Api, connection: Connection, admin: str) -> None:
    await api.post(f"/v1/connections/{connection.id}/revoke", admin, {"reason": "left"})


async def delete_permit(api: Api, connection: Connection, admin: str) -> None:
    await api.call("DELETE", "/v1/apps/report/permits/only", admin)


async def deny(api: Api, connection: Connection, admin: str) -> None:
    denied = {"effect": "deny", "integration": "crm", "actions": ["token"]}
    await api.call("PUT", "/v1/apps/report/permits/no", admin, json=denied)


async def disable(api: Api, connection: Connection, admin: str) -> None:
    await api.call("PUT", "/v1/apps/report", admin, json={"disabled": True})


async def hold(api: Api, connection: Connection, admin: str) -> None:
    order: dict[str, Any] = {"subject": "user-1", "reason": "HR-7"}
    answer = await api.post("/v1/offboardings", admin, order)
    assert answer.status_code in (200, 201, 202), answer.text
    await api.change(connection, lambda row: row.__replace__(held_by=answer.json()["id"]))


@pytest.mark.parametrize("end", [revoke, delete_permit, deny, disable, hold])
async def test_a_token_that_is_refused_is_deleted(
    api: Api, connection: Connection, path: Path, run: Run, end: Callable[..., Awaitable[None]]
):
    admin = await bootstrap_admin(api.store, api.clock, TENANT, timedelta(days=1))
    written = await run()
    assert (written.status, written.err) == (0, "")
    assert text_of(path) == "canary-1"
    await end(api, connection, admin)
    ended = await run()
    assert ended.status == 1
    assert ended.err
    assert text_of(path) is None


async def test_a_newer_token_replaces_the_one_before(api: Api, connection: Connection, path: Path, run: Run):
    await run()
    await api.install(await api.row(TENANT, connection.id), "canary-2")
    assert (await run("--format", "header")).status == 0
    assert text_of(path) == "Authorization: Bearer canary-2\n"


async def test_a_file_of_others_is_left_alone(path: Path, run: Run):
    await asyncio.to_thread(path.write_text, "theirs")
    assert "file_exists" in (await run()).err
    assert text_of(path) == "theirs"


@pytest.mark.parametrize("words", [("--mode", "0644"), ("--mode", "rw"), ("--look", "0"), ("--lease", "1")])
async def test_what_cant_be_meant_is_refused(path: Path, run: Run, words: tuple[str, ...]):
    assert "invalid_request" in (await run(*words)).err
    assert text_of(path) is None
