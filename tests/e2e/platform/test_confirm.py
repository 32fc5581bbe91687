"""Binding as a user has it, on the real platform: a terminal that waits, and a web app in Flask."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from runpy import run_module
from types import SimpleNamespace

import httpx2
import pytest
import pytest_asyncio

from examples.demo.authorization_server import AuthorizationServer
from examples.demo.forms import read_forms
from tests.e2e.world import COMMAND, World, at, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.authorization_server import running_authorization_server

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


async def test_a_terminal_binds_the_consent_that_it_began(world: BindingWorld):
    env = {**os.environ, "EVERGRANT_URL": world.platform.api, "EVERGRANT_API_KEY": world.key}
    pipe = asyncio.subprocess.PIPE
    words = ("connect", "crm", "terminal", "--wait", "--timeout", str(PATIENCE_S), "-o", "json")
    child = await asyncio.create_subprocess_exec(COMMAND, *words, env=env, stdout=pipe, stderr=pipe)
    assert child.stderr is not None
    link = (await child.stderr.readline()).decode().removeprefix("open ").strip()
    landing = await world.server.scripted_consent(link)
    assert landing.url.startswith("http://127.0.0.1:")
    out, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert (child.returncode, err) == (0, b"")
    assert json.loads(out)["state"] == "active"
    audit = await world.admin.get(f"/v1/connections/{json.loads(out)['id']}/audit")
    assert {"consent.returned", "consent.confirmed"} <= {record["action"] for record in audit["items"]}


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
