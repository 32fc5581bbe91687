"""Somebody at a browser, who finds what is on the page by its words, and whose clicks are counted."""

import asyncio
import re
import time
from contextlib import suppress

from playwright.async_api import Error, Locator, Page, Request

from tests.fakes.patience import PATIENCE_S

_CONFIRM = re.compile(r"Type (?:the .+?, )?(.+?)(?:,.*)? to confirm")
_FIELD_S = 5.0  # until a field is there
_QUIET_S = 0.15  # without a request for a part of the page
_RELOAD_S = 1.0  # how long somebody looks at a page before loading it again


class Person:
    """`clicks`: links, buttons, boxes and choices, with those of a login; typing isn't counted."""

    def __init__(self, page: Page, url: str, name: str) -> None:
        self.page, self.url, self.name = page, url, name
        self.clicks = 0
        self._parts: set[Request] = set()  # of the page, that are being replaced
        page.on("request", self._begins)
        page.on("requestfinished", self._ends)
        page.on("requestfailed", self._ends)

    def _begins(self, request: Request) -> None:
        if "hx-request" in request.headers:
            self._parts.add(request)

    def _ends(self, request: Request) -> None:
        self._parts.discard(request)

    async def _settles(self) -> None:
        """Wait until no part of the page is being replaced."""
        quiet_since = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while time.monotonic() < quiet_since + _QUIET_S:
                await asyncio.sleep(0.02)
                if self._parts:
                    quiet_since = time.monotonic()

    # --- where they go ----------------------------------------------------------------------------

    async def goes_to(self, address: str) -> None:
        """Type an address, or open a bookmark."""
        await self.page.goto(address if "://" in address else f"{self.url}{address}")
        await self._logs_in_again()

    async def menu(self, group: str, place: str | None = None) -> None:
        """A page of the console's menu."""
        await self._load(
            self.page.get_by_label("Console", exact=True).get_by_role("link", name=group, exact=True)
        )
        if place is not None:
            await self._load(
                self.page.get_by_label("This part", exact=True).get_by_role("link", name=place, exact=True)
            )

    async def follows(self, words: str | re.Pattern[str]) -> None:
        """A link of the page, by its words."""
        exact = isinstance(words, str)
        link = self.page.locator("main").get_by_role("link", name=words, exact=exact).first
        await self._load(link)

    async def _load(self, link: Locator) -> None:
        self.clicks += 1
        if await link.get_attribute("hx-get") is not None and await self._has_scripts():
            await link.click()  # a part of the page is replaced
            return
        async with self.page.expect_navigation():
            await link.click()
        await self._logs_in_again()

    async def _has_scripts(self) -> bool:
        return bool(await self.page.evaluate("'htmx' in window"))

    # --- what they do there -----------------------------------------------------------------------

    async def fills(self, label: str, text: str) -> None:
        await (await self._field(label)).fill(text)

    async def chooses(self, label: str, words: str) -> None:
        """The option that begins with these words."""
        self.clicks += 1
        select = await self._field(label)
        options = await select.locator("option").all_inner_texts()
        (option,) = [text for text in options if text.strip().startswith(words)][:1]
        await select.select_option(label=option.strip())
        await self._settles()

    async def ticks(self, label: str) -> None:
        self.clicks += 1
        await (await self._field(label)).check()

    async def opens(self, summary: str) -> None:
        """Unfold a part of the page."""
        self.clicks += 1
        await self.page.locator("summary", has_text=summary).click()

    async def confirms(self) -> None:
        """Type the name that the page asks for before what can't be undone."""
        words = await self.page.locator("label[for=confirm]").inner_text()
        asked = _CONFIRM.search(words)
        assert asked is not None, words
        await self.page.locator("#confirm").fill(asked[1].strip())

    async def presses(self, words: str | re.Pattern[str], *, under: str | None = None) -> None:
        """A button, which loads a page. `under`: the heading of its form, where others have such a button."""
        self.clicks += 1
        async with self.page.expect_navigation():
            await self._button(words, under).click()
        await self._logs_in_again()

    async def filters(self, words: str) -> None:
        """A button of a filter, which replaces the list."""
        self.clicks += 1
        button = self._button(words, None)
        if await self._has_scripts():
            await button.click()
            await self._settles()
            return
        async with self.page.expect_navigation():
            await button.click()

    async def downloads(self, words: str) -> bytes:
        """The file that a link gives."""
        self.clicks += 1
        async with self.page.expect_download() as download:
            await self.page.locator("main").get_by_role("link", name=words, exact=True).click()
        return await asyncio.to_thread((await (await download.value).path()).read_bytes)

    def _button(self, words: str | re.Pattern[str], under: str | None) -> Locator:
        place = self.page.locator("main")
        if under is not None:
            place = place.locator("form").filter(has=self.page.get_by_role("heading", name=under, exact=True))
        return place.get_by_role("button", name=words, exact=isinstance(words, str)).first

    async def _field(self, label: str) -> Locator:
        """By its label; of a label that goes on, such as one around a choice, by how it begins."""
        begins = rf"^\s*{re.escape(label)}"
        patterns = [re.compile(begins + rest, re.DOTALL) for rest in (r"\s*(optional.*)?$", "")]
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIELD_S):  # a part of the page may be on its way
                while True:
                    for pattern in patterns:
                        field = self.page.locator("main").get_by_label(pattern)
                        if await field.count():
                            return field.first
                    await asyncio.sleep(0.05)
        labels = await self.page.locator("label").all_inner_texts()
        raise AssertionError(f"no field has the label {label}, but: {labels}")

    # --- what they read ---------------------------------------------------------------------------

    async def reads(self, words: str | re.Pattern[str]) -> None:
        """The page has these words, where they can be seen."""
        await self.page.locator("main").get_by_text(words).filter(visible=True).first.wait_for()

    async def value_of(self, label: str) -> str:
        """What stands in a field."""
        return await (await self._field(label)).input_value()

    async def sees(self, words: str | re.Pattern[str]) -> bool:
        return await self.page.locator("main").get_by_text(words).filter(visible=True).count() > 0

    async def waits_for(self, words: str | re.Pattern[str]) -> None:
        """Look until the page has these words, loading it again as somebody does who waits."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.sees(words):
                await asyncio.sleep(_RELOAD_S)
                with suppress(Error):  # a part of it was being replaced
                    if not await self.sees(words):
                        await self.page.reload()

    # --- who they are -----------------------------------------------------------------------------

    async def logs_in(self) -> None:
        """Open the console, and log in at the tenant's issuer."""
        await self.goes_to("/console")
        await self._leaves(self.page.get_by_role("link", name="Log in at your issuer"))
        await self.goes_through_issuer()

    async def logs_in_with(self, key: str) -> None:
        """Paste an app's key at the console's login, which leads to the page that was wanted."""
        await self.page.get_by_label("API key", exact=True).fill(key)
        await self.presses("Log in")

    async def _logs_in_again(self) -> None:
        """Where a page says that its act takes a login of moments ago."""
        link = self.page.get_by_role("link", name="Log in again", exact=True)
        if await link.count():
            await self._leaves(link.first)
            await self.goes_through_issuer()

    async def _leaves(self, link: Locator) -> None:
        self.clicks += 1
        async with self.page.expect_navigation():
            await link.click()

    async def goes_through_issuer(self, until: str = "#page") -> None:
        """Our button, the issuer's pages, and back to a page of ours that has `until`."""
        go_on = re.compile(r"^(Continue|Sign-in)")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(Error):  # the browser is on its way
                    if await self.page.locator(until).count():
                        return
                    login = self.page.locator("input[name=login]")
                    if await login.count():
                        await login.fill(self.name)
                        await self.page.locator("input[name=password]").fill("any")
                    button = self.page.get_by_role("button", name=go_on)
                    if await button.count():
                        self.clicks += 1
                        async with self.page.expect_navigation():
                            await button.first.click()
                await asyncio.sleep(0.05)
