"""The real Temporal UI in a real browser: a story is sealed there, and opened for who is logged in.

`python -m tests.e2e.pages.test_temporal_ui FOLDER` writes both pictures of docs/guide/operations.md.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.e2e.flows.test_implicit import running_browser
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

REASON = "Ann has left the company"
SEALED = '"RVZT'  # how the bytes of a seal begin, in base64
OPENED = '"confirmed"'  # of the run's result
SIZE = {"width": 1100, "height": 1000}
PICTURED = {"x": 256, "y": 150, "width": 844, "height": 850}


@dataclass
class TemporalUi:
    """One browser at the Temporal UI's page of a revoked connection's workflow."""

    platform: RunningPlatform
    url: str
    page: Page

    async def show_story(self, text: str) -> None:
        """Open the page, and wait until it says this."""
        await self.page.goto(self.url)
        await expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE_S * 1000)

    async def log_in(self) -> None:
        """At the console, with a pasted key."""
        await self.page.goto(f"{self.platform.url}/console/login")
        await self.page.get_by_label("API key").fill(self.platform.admin_key)
        await self.page.get_by_role("button", name="Log in", exact=True).click()
        await self.page.get_by_role("heading", name="Overview").wait_for()


async def a_revoked_connection(platform: RunningPlatform, idp: ScriptedProvider) -> str:
    """The id of a connection that was imported, and then revoked for a reason."""
    await platform.integration("crm", idp)
    tokens = {"access_token": "at-1", "refresh_token": "rt-1", "expires": "unknown"}
    item = {"integration": "crm", "subject": "ann@acme.example", **tokens}
    async with platform.client() as admin:
        imported = await admin.post("/v1/connections/import", json={"items": [item], "verify": False})
        assert imported.is_success, imported.text
        connection = (await admin.get("/v1/connections")).json()["items"][0]["id"]
        path = f"/v1/connections/{connection}"
        assert (await admin.post(f"{path}/revoke", json={"reason": REASON})).is_success
        await eventually(lambda: admin.get(path), lambda answer: answer.json()["state"] == "revoked")
    return connection


@asynccontextmanager
async def running_ui(folder: Path) -> AsyncIterator[TemporalUi]:
    api_port, ui_port = free_port(), free_port()
    ui = ("--ui-port", str(ui_port), "--ui-codec-endpoint", f"http://127.0.0.1:{api_port}/temporal")
    async with (
        ScriptedProvider() as idp,
        running_temporal(folder, ui=ui) as temporal,
        running_platform(
            folder,
            temporal.address,
            allow=(idp.allowance,),
            env={"EVERGRANT_TEMPORAL_UI_URL": f"http://127.0.0.1:{ui_port}"},
            port=api_port,
        ) as platform,
        running_browser() as browser,
    ):
        connection = await a_revoked_connection(platform, idp)
        page = await browser.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE_S * 1000)
        # as who chooses the browser's own setting at the codec server's icon, with credentials; a UI's server
        # that is no `start-dev` says the same by TEMPORAL_CODEC_INCLUDE_CREDENTIALS
        chosen = {"overrideRemoteCodecConfiguration": "true", "includeCredentials": "true"}
        chosen["endpoint"] = f'"http://127.0.0.1:{api_port}/temporal"'
        for name, value in chosen.items():
            await page.add_init_script(f"localStorage.setItem('{name}', '{value}')")
        workflow = f"connection:default:{connection}"
        url = f"http://127.0.0.1:{ui_port}/namespaces/default/workflows/{workflow}"
        yield TemporalUi(platform, url, page)


@pytest.mark.soak
async def test_the_story_opens_for_who_is_logged_in_and_for_nobody_else(tmp_path: Path):
    async with running_ui(tmp_path) as ui:
        await ui.show_story(SEALED)
        assert OPENED not in await ui.page.inner_text("body")
        await ui.log_in()
        await ui.show_story(OPENED)
        assert SEALED not in await ui.page.inner_text("body")


async def take_pictures(out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_ui(Path(folder)) as ui:
            for name, text in (("story-sealed", SEALED), ("story-opened", OPENED)):
                await ui.show_story(text)
                await ui.page.wait_for_timeout(1000)  # what moves has come to rest
                await ui.page.screenshot(path=out / f"{name}.png", clip=PICTURED)
                await ui.log_in()


if __name__ == "__main__":
    asyncio.run(take_pictures(Path(sys.argv[1])))
