"""A real Chromium, driven by playwright, for tests that look at pages as a person does."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

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


def installed_browser() -> str | None:
    """The path of a Chromium that this machine has, or None. Nothing is ever downloaded."""
    return next((found for found in map(shutil.which, _NAMES) if found), None)


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Chromium for the length of a block; skips the test when the machine has none."""
    path = installed_browser()
    if path is None:
        pytest.skip(f"needs a browser on the PATH, one of: {', '.join(_NAMES)}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            await browser.close()
