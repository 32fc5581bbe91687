"""Binding as a user has it, on the real platform: the guide in a terminal, and a web app in Flask."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from runpy import run_module
from types import SimpleNamespace

import httpx2
import pytest
import pytest_asyncio

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.forms import read_forms
from tests.e2e.world import World, at, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import ROOT
from tests.fakes.providers.authorization_server import running_authorization_server

GUIDE = ROOT / "docs/guide/getting-started.md"
CALLBACK = re.compile(r"http://127\.0\.0\.1:\d+/oauth/callback/int_\w+")
BASE = "http://localhost"
RETURN_TO = ["http://127.0.0.1/", f"{BASE}/evergrant/connected"]

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for both: it takes seconds


class BindingWorld(World):
    server: AuthorizationServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BindingWorld]:
    folder = tmp_path_factory.mktemp("binding")
    (folder / "as").mkdir()
    async with (
        running_authorization_server(folder / "as") as server,
        running(BindingWorld, folder / "data", server.issuer) as world,
    ):
        made = await world.integration("crm", at(server, binding="app"))
        await server.register(made["redirect_uri"])
        await world.admin.put("/v1/apps/jobs", {"return_to": RETURN_TO})
        world.server = server
        yield world


class Reader:
    """Follows the guide in a folder with `.venv`, as after `make dev`; `$BROWSER` hands over the link."""

    def __init__(self, folder: Path, world: BindingWorld) -> None:
        self.folder, self.link = folder, folder / "link"
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" > {self.link}.new && mv {self.link}.new {self.link}\n')
        browser.chmod(0o700)
        for name, text in {
            "secret.txt": world.server.client_secret,
            "admin.key": world.platform.admin_key,
            "evergrant.env": f"EVERGRANT_URL={world.platform.api}\nEVERGRANT_API_KEY_FILE=admin.key\n",
        }.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        self.env = kept | {"BROWSER": f"{browser} %s", "PYTHONPATH": str(ROOT / "clients/python/src")}
        self.typed = {"http://localhost:9000": world.server.issuer, "my-client": "guide", "crm": "contacts"}

    async def follow(self, commands: str) -> tuple[str, str]:
        for words, meant in self.typed.items():
            commands = commands.replace(words, meant)
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euc", commands), cwd=self.folder, env=self.env, stdin=none, stdout=pipe, stderr=pipe
        )
        out, err = await asyncio.wait_for(shell.communicate(), PATIENCE_S)
        assert shell.returncode == 0, (out.decode(), err.decode())
        return out.decode(), err.decode()

    async def opened(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while not self.link.exists():
                await asyncio.sleep(0.05)
        return self.link.read_text().strip()


@pytest.mark.soak
async def test_the_guide_leads_to_a_lease_and_a_revocation(world: BindingWorld, tmp_path: Path):
    """docs/guide/getting-started.md: its commands run as they are written."""
    init, connect, integration, app, revoke = re.findall(
        r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    reader = Reader(tmp_path, world)
    _, told = await reader.follow(init)
    (redirect_uri,) = CALLBACK.findall(told)
    await world.server.register(redirect_uri, client_id="guide")

    connecting = asyncio.create_task(reader.follow(connect))
    landing = await world.server.scripted_consent(await reader.opened())
    assert landing.url.startswith("http://127.0.0.1:")
    out, told = await connecting
    assert "alice is connected at server with read\n" in told
    assert "a token with read\nvalid until " in out

    out, _ = await reader.follow(integration + app)
    assert len(set(CALLBACK.findall(out))) == 1
    assert (tmp_path / "report.key").read_text().startswith("evg_")
    assert world.server.client_secret not in out + told

    listing, revoking = revoke.splitlines()
    (id,) = re.findall(r"con_\w+", (await reader.follow(listing))[0])
    audit = await world.admin.get(f"/v1/connections/{id}/audit")
    assert {"consent.returned", "consent.confirmed"} <= {record["action"] for record in audit["items"]}
    out, _ = await reader.follow(revoking.replace("con_…", id))
    assert re.search(r"^state +revok", out, re.MULTILINE)


async def test_a_web_app_connects_the_person_who_began(world: BindingWorld, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGRANT_URL", world.platform.api)
    monkeypatch.setenv("EVERGRANT_API_KEY", world.key)
    monkeypatch.setenv("SESSION_SECRET", "for-this-test-only")
    example = SimpleNamespace(
        **run_module("examples.web.flask_app")
    )  # not the one that another test has closed
    transport = httpx2.WSGITransport(app=example.app)

    @contextmanager
    def person(name: str) -> Iterator[httpx2.Client]:
        with httpx2.Client(transport=transport, base_url=BASE) as browser:
            browser.post("/login", data={"user": name}).raise_for_status()
            yield browser

    async def begun(browser: httpx2.Client) -> str:
        """Press the app's button, and consent at the provider. Returns where the browser is led."""
        (form,) = read_forms((await asyncio.to_thread(browser.get, "/")).text)
        link = (await asyncio.to_thread(browser.post, form.action)).headers["location"]
        return (await world.server.scripted_consent(link, stop_before=BASE)).url

    with person("alice") as alice, person("mallory") as mallory:
        back = await begun(mallory)
        exchanged = await world.server.calls("authorization_code")
        refused = await asyncio.to_thread(alice.get, back)
        assert refused.headers["location"] == "/?evergrant=subject_mismatch"
        assert await world.server.calls("authorization_code") == exchanged, "the code was not exchanged"

        connected = await asyncio.to_thread(alice.get, await begun(alice))
        assert connected.headers["location"] == "/?evergrant=active"
        assert (await asyncio.to_thread(alice.get, "/")).text == "connected"
    example.evergrant.close()
