"""A person's browser through a consent, and an operator's at the Temporal UI, both real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Error, Page
from rich.console import Console

from examples.demo import story
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.claims import Claims
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.platform import EvergrantProcess
from examples.demo.subject import Subject
from tests.fakes.browser import running_browser
from tests.fakes.patience import PATIENCE_S


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


async def text_with(page: Page, expected: str) -> str:
    """All that a page shows, in its frames too (details are rendered in one), once `expected` is there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(Error):  # a frame that is just being replaced
                shown = [await frame.locator("body").inner_text() for frame in page.frames]
                if expected in (text := "\n".join(shown)):
                    return text
            await asyncio.sleep(0.1)


async def test_a_consent_and_the_story_that_temporal_tells(told: tuple[story.Story, Page]):
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

    base = f"{it.platform.ui}/namespaces/default/workflows/{it.workflow_id}"
    await page.goto(base)
    await page.get_by_text("exchange_code").first.wait_for()
    texts = [await page.inner_text("body")]
    run = page.url.rsplit("/", 1)[0]
    for tab, expected in (
        ("user-metadata", "generation 1"),
        ("search-attributes", "EvergrantState"),
        ("history", "consent_granted"),
    ):
        await page.goto(f"{run}/{tab}")
        texts.append(await text_with(page, expected))
    story_told = "\n".join(texts)
    for words in ("refresh due", "code of cns_", "active", it.integration):
        assert words in story_told
    issued = await it.server.secrets()
    for secret in (*issued, token, it.server.client_secret, it.subject):
        assert secret not in story_told


async def test_a_consent_started_in_one_browser_cannot_be_finished_in_another(told: tuple[story.Story, Page]):
    """The callback is opened in another browser, as a thief of the redirect would."""
    it, thief = told
    body = {"integration": it.integration, "subject": it.subject}
    connection = await it.app.post("/v1/connections", body)
    callback = f"{it.platform.api}/oauth/callback/"
    async with Subject(it.server.user, it.server.password) as subject:
        stolen = await subject.consent(connection["connect_url"], stop_before=callback)
        answer = await thief.goto(stolen.url)
        assert answer is not None
        assert answer.status == 400
        assert "callback_invalid" in await thief.inner_text("body")
        assert (await it.app.get(f"/v1/connections/{connection['id']}"))["state"] == "pending_consent"
