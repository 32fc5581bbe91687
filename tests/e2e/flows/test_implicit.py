"""Consents in a real browser, at a real server, through the whole platform: with a code, and implicit.

Scripts and policies are what nothing but a browser judges.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Request, async_playwright

from evergrant_server.api.connections.flows import ALLOW_SETTING
from examples.demo.authorization_server import AuthorizationServer
from tests.e2e.world import World, at, refused, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.authorization_server import running_authorization_server

TOKEN_S = 12
_OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Implicit(World):
    """That allows it, with a server that offers it and a page of a browser."""

    server: AuthorizationServer
    page: Page
    data: Path
    problems: list[str]

    async def consent(self, flow: str, **client: str) -> dict[str, Any]:
        """A person opens the link, logs in and allows; the connection as it was begun."""
        made = await self.integration("browser", at(self.server))
        await self.server.register(made["redirect_uri"], **client)
        begun, page = await self.begin("browser", flow=flow), self.page
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.goto(begun["connect_url"])
        assert await page.evaluate(_OVERFLOW) <= 0
        host = urlsplit(str(self.server.issuer)).netloc
        assert await page.inner_text("h1") == f"Give jobs access to {host}?"
        await page.get_by_role("button").click()
        await page.fill("input[name=username]", self.server.user)
        await page.fill("input[name=password]", self.server.password)
        await page.click("[type=submit]")
        await page.click("[name=allow]")
        await page.get_by_text("is connected").wait_for()
        assert await page.evaluate(_OVERFLOW) <= 0
        assert "sam" in await page.inner_text("dl")
        return begun | {"redirect_uri": made["redirect_uri"]}


@asynccontextmanager
async def running_browser(*flags: str) -> AsyncIterator[Browser]:
    """A Chromium that this machine has; skips the test when it has none. Nothing is ever downloaded."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"needs a browser on the PATH, one of: {', '.join(_NAMES)}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*_FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()


async def new_page(browser: Browser) -> Page:
    """One that is as patient as the tests are."""
    page = await browser.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    return page


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Implicit]:
    monkeypatch.setenv(ALLOW_SETTING, "true")
    data, seconds = tmp_path / "evergrant", ("--access-token-seconds", str(TOKEN_S))
    async with (
        running_browser() as browser,
        running_authorization_server(tmp_path / "as", "--implicit", *seconds, warnings="default") as server,
        running(Implicit, data, server.issuer) as world,
    ):
        world.server, world.page, world.data = server, await new_page(browser), data
        world.problems = []
        world.page.on("pageerror", lambda error: world.problems.append(str(error)))
        world.page.on("console", lambda it: world.problems.append(it.text) if "Policy" in it.text else None)
        yield world


async def test_a_consent_leaves_no_code_in_the_browser(world: Implicit):
    await world.consent("authorization_code")
    token = (await world.api.lease("browser", "sam"))["access_token"]
    assert (await world.server.whoami(token)).status_code == 200
    assert "code=" not in world.page.url, "the code stays out of the browser's history of places"
    assert world.problems == []


@pytest.mark.soak
async def test_rfc6749_4_2_a_token_that_a_browser_brings(world: Implicit):
    """Consent, lease, resource; the token in no URL of ours and no file; its end asks for a new consent."""
    page, app, problems = world.page, world.api, world.problems
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))
    begun = await world.consent("implicit", grant_type="implicit")
    assert problems == []

    lease = await app.lease("browser", "sam")
    token = lease["access_token"]
    assert (lease["token_type"], lease["scopes"]) == ("Bearer", ["read"])
    assert (await world.server.whoami(token)).status_code == 200

    assert page.url == begun["connect_url"], "no fragment in the browser's history of places"
    ours = [it for it in asked if it.url.startswith(world.platform.api)]
    # the browser's own view of a page's address has its fragment; what is sent has not
    assert [it.url for it in ours if token in it.url.partition("#")[0]] == []
    (brought,) = [it for it in ours if it.url.endswith("/fragment")]
    assert token in (brought.post_data or "")
    files = {path: path.read_bytes() for path in world.data.rglob("*") if path.is_file()}
    assert any(begun["id"].encode() in held for held in files.values())
    assert b"exchange_code" in b"".join(files.values()), "Temporal's own database is among them"
    assert [path for path, held in files.items() if token.encode() in held] == []

    await page.goto(begun["redirect_uri"])  # a visit without a token
    await page.get_by_text("callback_invalid").wait_for()
    assert await page.inner_text("h1") == "This didn't work"
    assert problems == []

    ended = await app.state(begun["id"], "needs_reauth", TOKEN_S + PATIENCE_S)
    assert ended["reason"] == "consent_required"
    with refused("consent_required"):
        await app.lease("browser", "sam")
    assert await world.server.calls("refresh_token") == 0
