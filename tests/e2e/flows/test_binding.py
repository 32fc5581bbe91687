"""Another person's link, at a real authorization server: the app's own session says who came back."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Page
from starlette.responses import PlainTextResponse

from evergrant_server.core.connections.binding import challenge_of
from examples.demo.authorization_server import AuthorizationServer
from tests.e2e.flows.test_implicit import new_page, running_browser
from tests.e2e.world import World, at, refused, running
from tests.fakes.http_server import served
from tests.fakes.providers.authorization_server import running_authorization_server

BACK = "http://127.0.0.1:9/back"
pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


class Sessions(World):
    """An app with web sessions, and a server at which a victim has an account."""

    server: AuthorizationServer

    async def link(self, subject: str, **more: Any) -> dict[str, Any]:
        return await self.begin("crm", subject, return_to=BACK, **more)

    async def browser_consents(self, link: str) -> dict[str, str]:
        """A new browser follows the link and consents; returns what it takes to the app."""
        landing = await self.server.scripted_consent(link, stop_before=BACK)
        return dict(parse_qsl(urlsplit(landing.url).query))

    async def confirm(self, told: dict[str, str], subject: str, **more: str) -> dict[str, Any]:
        body = {"code": told["evergrant_code"], "subject": subject, **more}
        return await self.api.post(f"/v1/connections/{told['connection_id']}/confirm", body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sessions]:
    folder = tmp_path_factory.mktemp("sessions")
    (folder / "as").mkdir()
    async with (
        running_authorization_server(folder / "as") as server,
        running(Sessions, folder / "data", server.issuer) as world,
    ):
        await world.admin.put("/v1/apps/jobs", {"return_to": [BACK, "http://127.0.0.1/back"]})
        made = await world.integration("crm", at(server, binding="app"))
        await server.register(made["redirect_uri"])
        world.server = server
        yield world


@pytest.mark.parametrize("challenge", [pytest.param(None, marks=pytest.mark.soak), "of-mallory's-session"])
async def test_an_attackers_link_connects_no_victim_and_a_minute_later_the_victim_is_connected(
    world: Sessions, challenge: str | None
):
    session = {} if challenge is None else {"challenge": challenge_of(challenge)}
    mallory, victim = (f"{name}-{len(session)}" for name in ("mallory", "victim"))
    before = await world.server.calls("authorization_code")
    attack = await world.link(mallory, **session)
    told = await world.browser_consents(attack["connect_url"])  # in the victim's browser
    with refused("not_found", 404):
        await world.confirm({**told, "evergrant_code": "A" * 43}, mallory)
    with refused("subject_mismatch", 409):
        await world.confirm(told, victim)
    with refused("subject_mismatch", 409):
        await world.confirm(told, mallory, **({} if challenge is None else {"verifier": challenge}))
    with refused("consent_required", 409):
        await world.api.lease("crm", mallory)
    assert await world.server.calls("authorization_code") == before

    told = await world.browser_consents((await world.link(victim))["connect_url"])
    connected = await world.confirm(told, victim)
    assert (connected["state"], connected["subject"]) == ("active", victim)
    lease = await world.api.lease("crm", victim)
    assert (await world.server.whoami(lease["access_token"])).json()["user"] == world.server.user
    assert await world.server.calls("authorization_code") == before + 1


async def test_the_attack_in_two_browsers_and_the_honest_person_afterwards(world: Sessions):
    """The victim's browser finishes mallory's link; the app's page is on loopback, on any port."""
    before = await world.server.calls("authorization_code")
    async with running_browser() as browser, served(the_app) as url:
        mallory, victim = await new_page(browser), await new_page(browser)
        attack = await world.begin("crm", "mallory", return_to=f"{url}/back")
        told = await opened(world, victim, attack["connect_url"])
        await mallory.goto(attack["connect_url"])
        assert "confirm_required" in await mallory.inner_text("body")
        with refused("subject_mismatch", 409):
            await world.confirm(told, "victim")
        await mallory.goto(attack["connect_url"])
        assert "already used" in await mallory.inner_text("body")
        assert "Connect again in jobs" in await mallory.inner_text("body")
        assert await world.server.calls("authorization_code") == before

        honest = await world.begin("crm", "victim", return_to=f"{url}/back")
        told = await opened(world, victim, honest["connect_url"], logged_in=True)
        assert (await world.confirm(told, "victim"))["state"] == "active"


async def the_app(scope: Any, receive: Any, send: Any) -> None:
    """A page that says nothing."""
    if scope["type"] == "http":
        await PlainTextResponse("back")(scope, receive, send)


async def opened(world: Sessions, page: Page, link: str, *, logged_in: bool = False) -> dict[str, str]:
    """A person follows the link, logs in and allows; returns what the browser takes to the app."""
    await page.goto(link)
    await page.get_by_role("button").click()
    if not logged_in:
        await page.fill("input[name=username]", world.server.user)
        await page.fill("input[name=password]", world.server.password)
        await page.click("[type=submit]")
    await page.click("[name=allow]")
    await page.wait_for_url("**/back?**")
    return dict(parse_qsl(urlsplit(page.url).query))
