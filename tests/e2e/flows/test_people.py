"""People who administer, at a certified issuer: by a real browser, and by `evergrant login`."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from msal.oauth2cli.oauth2 import Client as DeviceClient  # the only stock client on the registry that polls
from playwright.async_api import Page

from tests.e2e.flows.stock_client import AgentFile, stock_client
from tests.e2e.flows.test_implicit import new_page, running_browser
from tests.e2e.world import World, refused, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.oidc_provider import OidcProvider, running_oidc_provider


class People(World):
    """With the issuer."""

    server: OidcProvider

    async def set_up(self) -> None:
        said = {"provider": "generic", "issuer": self.server.issuer, "default_scopes": ["openid"]}
        made = await self.integration("staff", {**said, "client_id": "not-yet", "client_auth": "none"})
        client = await self.server.register(made["redirect_uri"], scope="openid groups")
        known = {"client_id": client["client_id"], "client_secret": client["client_secret"]}
        await self.integration("staff", {**said, **known, "client_auth": "client_secret_basic"})
        roles = {"tenant_admin": ["admins"], "auditor": ["auditors"]}
        body = {"integration": "staff", "scopes": ["groups"], "roles": roles}
        await self.admin.put("/v1/admin-login", body)

    async def command(self, home: Path, *words: str) -> asyncio.subprocess.Process:
        """A command of the client's, without a key."""
        kept = {name: it for name, it in os.environ.items() if not name.startswith("EVERGRANT_")}
        env = {**kept, "EVERGRANT_URL": self.platform.api, "XDG_CONFIG_HOME": str(home)}
        pipe = asyncio.subprocess.PIPE
        program = Path(sys.executable).with_name("evergrant")
        return await asyncio.create_subprocess_exec(program, *words, env=env, stdout=pipe, stderr=pipe)


pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for both: it takes seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[People]:
    data = tmp_path_factory.mktemp("people") / "data"
    async with running_oidc_provider() as server, running(People, data, server.issuer) as world:
        world.server = server
        await world.set_up()
        yield world


async def logs_in(page: Page, person: str | None) -> None:
    """Our page's button, and the issuer's pages; None: it knows the person."""
    await page.get_by_role("button", name=re.compile("Continue to")).click()
    if person is not None:
        await page.fill("input[name=login]", person)
        await page.fill("input[name=password]", "any")
        await page.click("[type=submit]")


async def consents(page: Page) -> None:
    await page.get_by_role("button", name="Continue").click()


async def test_a_browser_logs_in_steps_up_and_out(world: People, tmp_path: Path):
    async with running_browser() as browser:
        page = await new_page(browser)
        await page.goto(f"{world.platform.api}/login")
        await logs_in(page, "admins-ann")
        await consents(page)
        await page.wait_for_url("**/session")
        assert "tenant admin" in await page.inner_text("body")
        cookies = [it for it in await page.context.cookies() if it["name"] == "evergrant-dev-session"]
        assert [(it["httpOnly"], it["sameSite"]) for it in cookies] == [(True, "Lax")]

        await page.goto(f"{world.platform.api}/login?step_up=true")
        await logs_in(page, None)
        await page.wait_for_url("**/session")
        listed = (await world.admin.get("/v1/sessions"))["items"]
        live = [it for it in listed if it["live"]]
        assert [(it["sub"], it["kind"]) for it in live] == [("admins-ann", "browser")]
        assert live[0]["authenticated_at"] is not None

        await page.get_by_role("button", name="Log out").click()
        assert "logged out" in await page.inner_text("body")
        assert not [it for it in (await world.admin.get("/v1/sessions"))["items"] if it["live"]]

        stranger = await new_page(browser)
        await stranger.goto(f"{world.platform.api}/login")
        await logs_in(stranger, "others-eve")
        await consents(stranger)
        await stranger.get_by_text("not_permitted").wait_for()


@pytest.mark.soak
async def test_a_command_logs_in_by_a_browser_and_administers_as_a_person(world: People, tmp_path: Path):
    async with running_browser() as browser:
        login = await world.command(tmp_path, "login", "--no-browser", "-o", "json")
        assert login.stderr is not None
        line = (await asyncio.wait_for(login.stderr.readline(), PATIENCE_S)).decode()
        page = await new_page(browser)
        await page.goto(line.removeprefix("open ").strip())
        assert "act as you" in await page.inner_text("body")
        await logs_in(page, "auditors-bob")
        await consents(page)
        out, _ = await asyncio.wait_for(login.communicate(), PATIENCE_S)
        assert (login.returncode, json.loads(out)["role"]) == (0, "auditor")
        await page.get_by_text("Back to the terminal").wait_for()

    async def run(*words: str) -> tuple[int | None, str, str]:
        child = await world.command(tmp_path, *words)
        out, err = await asyncio.wait_for(child.communicate(), PATIENCE_S)
        return child.returncode, out.decode(), err.decode()

    assert "auditors-bob" in (await run("whoami"))[1]
    status, out, _ = await run("access", "report", "-o", "json")
    assert (status, [it["app"] for it in json.loads(out)]) == (0, ["admin", "jobs"])
    status, _, err = await run("people", "rm")
    assert (status, "not_permitted" in err) == (1, True)
    assert (await run("logout"))[0] == 0
    status, _, err = await run("whoami")
    assert (status, "api_key_missing" in err) == (1, True)
    with refused("not_found", 404):
        await world.admin.get("/v1/sessions/current")


async def test_a_stock_mcp_client_needs_the_url_alone(world: People):
    """It registers itself; a person lets it in once, and then it is one redirect."""
    await world.admin.put("/v1/apps/agents", {})
    await world.admin.put(
        "/v1/apps/agents/permits/all", {"integration": "*", "actions": ["proxy", "connect"]}
    )
    await world.admin.put("/v1/client-login", {"integration": "staff", "app": "agents"})
    url, kept, pages = f"{world.platform.gateway}/mcp", AgentFile(), []
    async with running_browser() as browser:
        page = await new_page(browser)

        async def lets_in(address: str) -> None:
            await page.goto(address)
            await page.fill("input[name=login]", "sam")
            await page.fill("input[name=password]", "any")
            await page.click("[type=submit]")
            await consents(page)
            pages.append(await page.inner_text("body"))
            await page.get_by_role("button", name="Allow", exact=True).click()

        async with stock_client(url, kept, lets_in) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
        assert "list_connections" in tools
        (shown,) = pages
        assert [it in shown for it in ("Coder", "No one has checked its name", "sam")] == [True] * 3
        assert kept.tokens is not None
        kept.tokens = None  # as after a revocation: the registration is kept

        async def comes_back(address: str) -> None:
            await page.goto(address)
            await page.get_by_text("Done").wait_for()

        async with stock_client(url, kept, comes_back) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == tools
    records = (await world.admin.get("/v1/audit?limit=200"))["items"]
    given = [it for it in records if it["action"] == "authorization.given"]
    assert [it["detail"]["subject"] for it in given] == ["sam", "sam"]


async def test_a_stock_client_without_a_browser_is_let_in_by_a_code(world: People):
    """The code is typed on a phone, where the person logs in and decides."""
    await world.admin.put("/v1/apps/agents", {})
    permit = {"integration": "*", "actions": ["proxy", "connect"]}
    await world.admin.put("/v1/apps/agents/permits/all", permit)
    await world.admin.put("/v1/client-login", {"integration": "staff", "app": "agents", "device": True})
    async with httpx2.AsyncClient(base_url=world.platform.api, timeout=PATIENCE_S, trust_env=False) as http:
        metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
        said = {"client_name": "Remote coder", "redirect_uris": ["http://127.0.0.1/callback"]}
        client_id = (await http.post("/oauth/register", json=said)).json()["client_id"]
    client = DeviceClient(metadata, client_id)
    flow = await asyncio.to_thread(client.initiate_device_flow)
    async with running_browser() as browser:
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        await page.goto(flow["verification_uri"])
        await page.get_by_label("Code").fill(flow["user_code"].lower())
        await page.get_by_role("button", name="Go on").click()
        await page.fill("input[name=login]", "kim")
        await page.fill("input[name=password]", "any")
        await page.click("[type=submit]")
        await consents(page)
        shown = await page.inner_text("body")
        assert [words in shown for words in (flow["user_code"], "Remote coder", "kim")] == [True] * 3
        await page.get_by_role("button", name="Allow", exact=True).click()
        await page.get_by_text("The program is let in").wait_for()
    tokens = await asyncio.to_thread(client.obtain_token_by_device_flow, flow)
    mcp = httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False)
    async with mcp as http:
        opened = await http.post(
            f"{world.platform.gateway}/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "ping"},
            headers={
                "Authorization": f"Bearer {tokens['access_token']}",
                "Accept": "application/json, text/event-stream",
            },
        )
    assert opened.status_code != 401, opened.text
