"""The implicit flow in a real browser, at a real server, through the whole platform.

Its script and its policy are what nothing but a browser judges.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, Request

from evergrant_server.api.connections.flows import ALLOW_SETTING
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.evergrant_api import ApiProblem, EvergrantApi
from examples.demo.platform import EvergrantProcess
from examples.demo.waiting import wait_until
from tests.fakes.browser import running_browser
from tests.fakes.patience import PATIENCE_S

TOKEN_S = 12
SOON_S = PATIENCE_S


class World:
    """The platform that allows it, a server that offers it, an app, and a page of a browser."""

    def __init__(
        self, server: AuthorizationServer, platform: EvergrantProcess, page: Page, data: Path
    ) -> None:
        self.server = server
        self.platform = platform
        self.page = page
        self.data = data
        self.admin = EvergrantApi(platform.api, platform.admin_key)
        self.problems: list[str] = []
        self.asked: list[Request] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if "Policy" in said.text else None)
        page.on("request", lambda asked: self.asked.append(asked))

    async def configured(self) -> str:
        """An integration whose metadata is read, and the key of an app. Returns the redirect URI."""
        body = {
            "provider": "generic",
            "issuer": self.server.issuer,
            "client_id": self.server.client_id,
            "client_secret": self.server.client_secret,
            "default_scopes": ["read"],
        }
        made = await self.admin.put("/v1/integrations/browser", body)
        await self.server.register(made["redirect_uri"], grant_type="implicit")

        async def ready() -> bool | None:
            return (await self.admin.get("/v1/integrations/browser"))["state"] == "ready" or None

        await wait_until(ready, "the issuer's metadata", SOON_S)
        return made["redirect_uri"]

    async def app(self) -> EvergrantApi:
        await self.admin.put("/v1/apps/jobs", {})
        permit = {"integration": "*", "actions": ["token", "connect"]}
        await self.admin.put("/v1/apps/jobs/permits/all", permit)
        return EvergrantApi(self.platform.api, (await self.admin.post("/v1/apps/jobs/keys"))["key"])


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv(ALLOW_SETTING, "true")
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(running_browser())
        seconds = ("--access-token-seconds", str(TOKEN_S))
        server = await AuthorizationServer.start(tmp_path / "as", "--implicit", *seconds)
        stack.push_async_callback(server.stop)
        data = tmp_path / "evergrant"
        platform = await EvergrantProcess.start(data, server.issuer.removeprefix("http://"))
        stack.push_async_callback(platform.stop)
        made = World(server, platform, await browser.new_page(), data)
        await stack.enter_async_context(made.admin)
        yield made


async def test_rfc6749_4_2_a_token_that_a_browser_brings(world: World):
    """Consent, lease, resource; the token in no URL of ours and no file; its end asks for a new consent."""
    page, redirect_uri = world.page, await world.configured()
    async with await world.app() as app:
        body = {"integration": "browser", "subject": "sam", "flow": "implicit"}
        begun = await app.post("/v1/connections", body)
        await page.goto(begun["connect_url"])
        await page.get_by_role("button").click()
        await page.fill("input[name=username]", world.server.user)
        await page.fill("input[name=password]", world.server.password)
        await page.click("[type=submit]")
        await page.click("[name=allow]")
        await page.get_by_text("is connected").wait_for()
        assert world.problems == []

        lease = await app.lease("browser", "sam")
        token = lease["access_token"]
        assert (lease["token_type"], lease["scopes"]) == ("Bearer", ["read"])
        assert (await world.server.whoami(token)).status_code == 200

        assert page.url == begun["connect_url"], "no fragment in the browser's history of places"
        ours = [it for it in world.asked if it.url.startswith(world.platform.api)]
        # the browser's own view of a page's address has its fragment; what is sent has not
        assert [it.url for it in ours if token in it.url.partition("#")[0]] == []
        (brought,) = [it for it in ours if it.url.endswith("/fragment")]
        assert token in (brought.post_data or "")
        files = {path: path.read_bytes() for path in world.data.rglob("*") if path.is_file()}
        assert any(begun["id"].encode() in held for held in files.values())
        assert b"exchange_code" in b"".join(files.values()), "Temporal's own database is among them"
        assert [path for path, held in files.items() if token.encode() in held] == []

        await page.goto(redirect_uri)  # a visit without a token
        await page.get_by_text("callback_invalid").wait_for()
        assert await page.inner_text("h1") == "This didn't work"
        assert world.problems == []

        ended = await app.state(begun["id"], "needs_reauth", TOKEN_S + SOON_S)
        assert ended["reason"] == "consent_required"
        with pytest.raises(ApiProblem) as refused:
            await app.lease("browser", "sam")
        assert refused.value.code == "consent_required"
        assert await world.server.calls("refresh_token") == 0
