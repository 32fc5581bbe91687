"""A person's browser through a consent: a real one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Page
from rich.console import Console

from examples.demo import story
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import Claims
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess
from tests.fakes.browser import running_browser


@pytest_asyncio.fixture
async def told(tmp_path: Path) -> AsyncIterator[tuple[story.Story, Page]]:
    """Evergrant as `dev` starts it, an authorization server, and a page of a browser."""
    async with running_browser() as browser:
        server = await AuthorizationServer.start(tmp_path / "as", "--access-token-seconds", "3600")
        try:
            platform = await EvergrantProcess.start(
                tmp_path / "evergrant", server.issuer.removeprefix("http://")
            )
            try:
                async with EvergrantApi(platform.api, platform.admin_key) as admin:
                    key = await story.configure(admin, server, "b")
                    async with EvergrantApi(platform.api, key) as app:
                        console = Console(quiet=True)
                        yield (
                            story.Story(
                                console, Claims(console), server, platform, admin, app, key, "b", False
                            ),
                            await browser.new_page(),
                        )
            finally:
                await platform.stop()
        finally:
            await server.stop()


async def consent(it: story.Story, page: Page) -> None:
    body = {"integration": it.integration, "subject": it.subject}
    connection = await it.app.post("/v1/connections", body)
    it.connection_id = connection["id"]
    await page.goto(connection["connect_url"])
    assert await page.inner_text("h1") == f"Give {it.app_name} access to 127.0.0.1?"
    await page.get_by_role("button").click()
    await page.fill("input[name=username]", it.server.user)
    await page.fill("input[name=password]", it.server.password)
    await page.click("[type=submit]")
    await page.click("[name=allow]")
    await page.get_by_text("is connected").wait_for()


async def test_a_consent_leaves_no_code_in_the_browser(told: tuple[story.Story, Page]):
    it, page = told
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None
    )
    await consent(it, page)
    token = (await it.lease())["access_token"]
    assert (await it.server.whoami(token)).status_code == 200
    assert "code=" not in page.url, "the code stays out of the browser's history of places"
    assert problems == []
