"""The console in a real browser: with scripts and without, by keyboard, on a phone.

Scripts, policies and focus are what nothing but a browser judges; how every view looks is judged in
tests/e2e/pages. The API runs in this process.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Page

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from tests.e2e.flows.test_implicit import running_browser
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S

PHONE = {"width": 390, "height": 844}


@dataclass
class Console:
    url: str
    api: Api
    browser: Browser
    key: str
    connection: Connection
    problems: list[str]

    async def log_in(self, **context: Any) -> Page:
        """A page of a new browser, logged in by the keyboard alone."""
        page = await self.browser.new_page(**context)
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda it: self.problems.append(it.text) if "Policy" in it.text else None)
        await page.goto(f"{self.url}/console")
        await page.locator("input:focus").wait_for()
        await page.keyboard.type(self.key)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Overview").wait_for()
        await page.goto(f"{self.url}/console/connections")
        await page.get_by_role("heading", name="Connections", exact=True).wait_for()
        return page

    async def state(self) -> LifecycleState:
        return (await self.api.row(TENANT, self.connection.id)).state


@pytest_asyncio.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    begun: dict[str, Any] = {}

    async def app(*request: Any) -> None:
        await begun["app"](*request)

    async with (
        running_browser() as browser,
        served(app) as url,
        running_api(tmp_path, public_url=url, temporal_ui_url="http://127.0.0.1:1") as api,
    ):
        begun["app"] = api.app
        key = await api.app_with("boss", Action.ADMIN, Action.CONNECT)
        crm = await api.integration()
        connection = await api.active(crm, subject="ann@example.com")
        for number in range(26):
            await api.connection(crm, subject=f"a-subject-with-a-name-that-is-far-too-long-{number}" * 3)
        api.link.events = {None: []}
        yield Console(url, api, browser, key, connection, [])


async def test_filter_page_and_revoke_by_keyboard_without_a_page_being_loaded(console: Console):
    page = await console.log_in()
    loads: list[str] = []
    page.on("load", lambda it: loads.append(it.url))
    await page.get_by_role("link", name="Next page").click()
    await page.get_by_role("link", name="First page").wait_for()
    await page.get_by_label("State").select_option("active")
    await page.wait_for_url("**/console/connections?state=active*", wait_until="commit")
    assert await page.get_by_role("row").count() == 2
    assert await page.get_by_role("status").inner_text() == "1 connection on this page"
    assert loads == []

    await page.get_by_role("link", name="ann@example.com").click()
    await page.get_by_role("heading", name="Story").wait_for()
    ui = page.get_by_role("link", name="Its workflow in the Temporal UI")
    path = f"http://127.0.0.1:1/namespaces/default/workflows/connection%3Aacme%3A{console.connection.id}"
    assert await ui.get_attribute("href") == path
    loads.clear()
    await page.get_by_role("link", name="Revoke").focus()
    await page.keyboard.press("Enter")
    heading = page.get_by_role("heading", name="Revoke for good?")
    await heading.wait_for()
    assert loads == []
    assert await heading.evaluate("it => it === document.activeElement"), "a screen reader is led there"
    await page.keyboard.press("Tab")
    await page.keyboard.type("by keyboard")
    await page.keyboard.press("Tab")
    assert await console.state() is LifecycleState.ACTIVE
    await page.keyboard.press("Enter")
    await page.get_by_text("is being revoked").wait_for()
    assert await console.state() is LifecycleState.REVOKING
    assert console.problems == []


async def test_the_catalogue_is_searched_while_its_words_are_typed(console: Console):
    page = await console.log_in()
    await page.get_by_role("link", name="Setup").click()
    await page.get_by_role("link", name="Catalogue").click()
    field = page.get_by_label("Name or kind")
    await field.press_sequentially("google dri")
    await page.locator("#said", has_text="1 provider found").wait_for(state="attached")
    assert await page.get_by_role("row").count() == 2
    assert await field.evaluate("it => it === document.activeElement")
    assert console.problems == []


async def test_without_scripts_everything_works_too(console: Console):
    page = await console.log_in(java_script_enabled=False)
    await page.get_by_label("State").select_option("active")
    await page.get_by_role("button", name="Filter").click()
    await page.get_by_role("link", name="ann@example.com").click()
    await page.get_by_role("link", name="Reconnect").click()
    await page.get_by_role("button", name="Make the link").click()
    link = await page.get_by_label("Connect link, shown once").input_value()
    assert link.startswith(f"{console.url}/connect/")
    assert not await page.get_by_role("button", name="Copy").is_visible()
    await page.get_by_role("link", name="To the connection").click()
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_label("API key").wait_for()


async def test_on_a_phone_a_link_is_made_and_copied(console: Console):
    page = await console.log_in(viewport=PHONE, permissions=["clipboard-read", "clipboard-write"])
    await page.get_by_role("link", name="Connect an account").click()
    await page.get_by_label("Integration").fill("crm")
    await page.get_by_label("Subject").fill("bob")
    await page.get_by_role("button", name="Continue").click()
    await page.get_by_role("button", name="Make the link").click()
    await page.get_by_role("button", name="Copy").click()
    await page.get_by_role("button", name="Copied").wait_for()
    link = await page.get_by_label("Connect link, shown once").input_value()
    assert await page.evaluate("navigator.clipboard.readText()") == link
    assert console.problems == []
