"""docs/guide/proxy.md: its commands and its program, run against a gateway in front of a scripted API."""

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from evergrant import AsyncEvergrant, BadRequest, Denied, Evergrant
from evergrant.cli.main import main

from evergrant_server.api.apps.keys import bootstrap_admin
from tests.fakes.api import TENANT, Api, api
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.gateway import Gateway, RawUpstream, answer, running_gateway, upstream_api

__all__ = ["api"]

PAGE = (Path(__file__).parents[3] / "docs/guide/proxy.md").read_text(encoding="utf-8")
ME = answer(b'{"login": "alice"}', "200 OK", "Content-Type: application/json")


@dataclass
class Installation:
    """An API and a gateway with a connection, and an agent that may use it."""

    url: str
    gateway_url: str
    connection_id: str
    admin: str
    agent: str
    upstream: RawUpstream

    def command(self, line: str, key: str) -> tuple[int, str, str]:
        """A command line of the page, run: exit status, output, errors. Blocks."""
        words = shlex.split(line.replace("con_…", self.connection_id))
        out, errors = TextIOWrapper(BytesIO(), encoding="utf-8"), StringIO()
        with pytest.MonkeyPatch.context() as env, redirect_stdout(out), redirect_stderr(errors):
            env.setenv("EVERGRANT_URL", self.url)
            env.setenv("EVERGRANT_GATEWAY_URL", self.gateway_url)
            env.setenv("EVERGRANT_API_KEY", key)
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
        out.flush()
        out.seek(0)
        return int(ended.value.code or 0), out.read(), errors.getvalue()


@pytest_asyncio.fixture
async def installed(api: Api) -> AsyncIterator[Installation]:
    async with upstream_api() as upstream, running_gateway(api, upstream) as gateway, served(api.app) as url:
        connection = await api.active(await api.integration("github"))
        admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
        agent = await api.app_with("agent")
        yield Installation(url, at(gateway), connection.id, admin, agent, upstream)


def at(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def commands(name: str) -> list[str]:
    return [line for line in PAGE.splitlines() if line.startswith(f"evergrant {name} ")]


async def test_the_commands_of_the_guide(installed: Installation):
    upstream = installed.upstream
    (permit,) = commands("permits")
    status, _, errors = await asyncio.to_thread(installed.command, permit, installed.admin)
    assert (status, errors) == (0, "")
    first, second = commands("proxy")
    upstream.responses = [ME]
    assert await asyncio.to_thread(installed.command, first, installed.agent) == (0, '{"login": "alice"}', "")
    status, shown, _ = await asyncio.to_thread(installed.command, second, installed.agent)
    assert (status, shown.splitlines()[0]) == (0, "HTTP 200")
    assert [it.target for it in upstream.seen] == ["/api/user", "/api/user/repos?per_page=5"]
    assert all(it.values("authorization") == ["Bearer at-1"] for it in upstream.seen)
    refused = first.replace("GET /user", "DELETE /user")
    status, _, errors = await asyncio.to_thread(installed.command, refused, installed.agent)
    assert status == 1
    assert "not_permitted" in errors
    upstream.responses = [answer(b"gone", "404 Not Found")]
    status, shown, errors = await asyncio.to_thread(installed.command, first, installed.agent)
    assert (status, shown) == (1, "gone")
    assert "api_refused" in errors
    url = re.findall(r"\$EVERGRANT_GATEWAY_URL(/\S+)", PAGE)[0].replace("con_…", installed.connection_id)
    headers = {"Authorization": f"Bearer {installed.agent}"}
    async with httpx2.AsyncClient(base_url=installed.gateway_url, timeout=PATIENCE_S) as client:
        assert (await client.get(url, headers=headers)).status_code == 200


async def test_the_program_of_the_guide(installed: Installation, tmp_path: Path):
    (permit,) = commands("permits")
    await asyncio.to_thread(installed.command, permit, installed.admin)
    installed.upstream.responses = [ME]
    (program,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    whole = (
        "from evergrant import Evergrant\n"
        f"evergrant, connection_id = Evergrant(), {installed.connection_id!r}\n{program}"
    )
    env = {
        "EVERGRANT_URL": installed.url,
        "EVERGRANT_GATEWAY_URL": installed.gateway_url,
        "EVERGRANT_API_KEY": installed.agent,
        "PYTHONPATH": ":".join(sys.path),
    }
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", whole], env=env, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "{'login': 'alice'}\n"), ran.stderr


async def test_both_clients_reach_the_api_alone_and_raise_what_is_evergrants_own(installed: Installation):
    def blocking() -> None:
        with (
            Evergrant(installed.url, installed.agent) as client,
            client.proxy(installed.connection_id, gateway_url=installed.gateway_url) as api,
        ):
            with pytest.raises(BadRequest) as hidden:  # no permit: as if it didn't exist
                api.get("/user")
            assert hidden.value.code == "not_found"
            with pytest.raises(BadRequest) as elsewhere:
                api.get("https://evil.example/")
            assert elsewhere.value.code == "origin_invalid"

    await asyncio.to_thread(blocking)
    (permit,) = commands("permits")
    await asyncio.to_thread(installed.command, permit, installed.admin)
    async with (
        AsyncEvergrant(installed.url, installed.agent) as client,
        client.proxy(installed.connection_id, gateway_url=installed.gateway_url) as api,
    ):
        installed.upstream.responses = [answer(b"", "418 Teapot")]
        assert (await api.get("/user")).status_code == 418
        with pytest.raises(Denied):
            await api.post("/user")


async def test_without_the_gateways_address_the_client_says_what_to_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EVERGRANT_GATEWAY_URL", raising=False)
    with Evergrant("http://127.0.0.1:1", "evg_key_x") as client:
        for url, code in (
            (None, "url_missing"),
            ("nonsense", "url_invalid"),
            ("http://a.example", "plain_http_refused"),
        ):
            with pytest.raises(BadRequest) as refused:
                client.proxy("con_1", gateway_url=url)
            assert refused.value.code == code
