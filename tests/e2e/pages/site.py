"""A browser at a filled tenant.

    async with running_site(folder) as site: await site.log_in(page); await site.show(page, view)

The site's host is `HOST`, so that no view has an address of this machine.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from tests.e2e.flows.test_implicit import running_browser
from tests.e2e.pages.filled import Filled, fill
from tests.e2e.pages.rendered import rendered_pages
from tests.e2e.pages.views import View
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.certificates import loopback_tls
from tests.fakes.http_server import listening, talk_to
from tests.fakes.patience import PATIENCE_S

HOST = "evergrant.example"


@dataclass
class Site:
    """A browser's way to a filled tenant."""

    api: Api
    browser: Browser
    filled: Filled
    problems: list[str]
    url: str = f"https://{HOST}"

    async def page(self, **context: Any) -> Page:
        """One of a new browser. What it complains of is in `problems`."""
        page = await self.browser.new_page(ignore_https_errors=True, **context)
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda it: self.problems.append(it.text) if "Policy" in it.text else None)
        return page

    async def log_in(self, page: Page) -> None:
        await page.goto(f"{self.url}/console/login")
        await page.get_by_label("API key").fill(self.filled.key)
        await page.get_by_role("button", name="Log in", exact=True).click()
        await page.get_by_role("heading", name="Overview").wait_for()

    async def revoke_keys(self, name: str) -> None:
        """An app has two live keys at most."""
        app, now = await self.api.app_named(name), self.api.clock.now()
        async with self.api.worker.write() as tx:
            for key in await tx.access.live_keys(TENANT, app.id, now):
                await tx.access.revoke_key(TENANT, key.id, now)

    async def show(self, page: Page, view: View) -> None:
        await page.goto(self.url + view.path.format_map(vars(self.filled)))
        for label, text in view.typed:
            await page.get_by_label(label, exact=True).fill(text)
        for name in view.presses:
            if name == "Make the key":
                await self.revoke_keys("report")
            if name == "Log in":
                await page.get_by_label("API key").fill("evg_key_mistyped")
            async with page.expect_navigation():
                await page.get_by_role("button", name=name, exact=True).click()


@asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """The API over a filled tenant, and a browser that finds it as `HOST`."""
    shown = dict(rendered_pages())

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        asked = scope["path"].removeprefix("/shown/")
        await (shown.get(asked) or api.app)(scope, receive, send)

    ui = "https://temporal.acme.example"
    async with running_api(folder, public_url=f"https://{HOST}", temporal_ui_url=ui) as api:
        filled = await fill(api)
        async with (
            listening(talk_to(app), tls=loopback_tls(folder).server) as port,
            running_browser(f"--host-resolver-rules=MAP {HOST}:443 127.0.0.1:{port}") as browser,
        ):
            yield Site(api, browser, filled, [])
