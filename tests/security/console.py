"""A browser at the console, in tests: logged in by an API key, or as a person."""

from typing import Any

import httpx2

from evergrant_server.core.ids import Tenant
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import SessionKind
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor
from tests.security.people import COOKIE, ORIGIN, put_session

KEY_COOKIE = "__Host-evergrant-console"


class ConsoleBrowser(Visitor):
    """One browser. Its forms carry what a page of the session carries."""

    async def log_in(self, key: str, **headers: str) -> httpx2.Response:
        fields = {"csrf": await self.csrf("/console/login"), "key": key}
        return await self.browser.post("/console/login", data=fields, headers={"Origin": ORIGIN, **headers})

    async def page(self, path: str) -> str:
        """A page that must be there."""
        answer = await self.browser.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def send(self, path: str, **fields: str) -> httpx2.Response:
        sent = {"csrf": await self.csrf("/console/connections"), **fields}
        return await self.browser.post(path, data=sent, headers={"Origin": ORIGIN})


async def at_console(api: Api, key: str) -> ConsoleBrowser:
    """A browser in which this key was pasted."""
    browser = ConsoleBrowser(api)
    answer = await browser.log_in(key)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console"), answer.text
    return browser


async def person_at_console(
    api: Api, role: PersonRole, tenant: Tenant = TENANT, **more: Any
) -> ConsoleBrowser:
    """A browser of a person with this role."""
    browser = ConsoleBrowser(api)
    _, bearer = await put_session(api, tenant, role, kind=SessionKind.BROWSER, **more)
    browser.browser.cookies.set(COOKIE, bearer.removeprefix("evg_ses_"))
    await browser.page("/console/connections")  # which gives it the cookie of its forms
    return browser
