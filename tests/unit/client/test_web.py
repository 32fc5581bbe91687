"""The examples of `evergrant.web`, each in its framework: the person who finishes is the one who began."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from evergrant import State
from evergrant.testing import FakeConnection, FakeEvergrant

from examples.demo.forms import read_forms

BASE = "http://localhost"
CONNECTED = f"{BASE}/evergrant/connected"


class InThread(httpx2.AsyncBaseTransport):
    """A WSGI app for an asyncio client."""

    def __init__(self, app: Any) -> None:
        self._app = httpx2.WSGITransport(app=app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        answer = await asyncio.to_thread(self._app.handle_request, request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.read())


class Browser(httpx2.AsyncClient):
    """A person's browser at the app. It follows no redirect by itself."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        super().__init__(transport=transport, base_url=BASE, follow_redirects=False)

    async def log_in(self, user: str) -> None:
        home = await self.get("/")
        assert home.text == "log in"
        (await self.post("/login", data={"user": user})).raise_for_status()

    async def begin(self) -> str:
        """Press the app's button. Returns where the browser is led."""
        (form,) = read_forms((await self.get("/")).text)
        answer = await self.post(form.action, data=form.fields)
        assert answer.is_redirect, answer.text
        return answer.headers["location"]

    async def open(self, url: str) -> str:
        answer = await self.get(url)
        assert answer.is_redirect, answer.text
        return answer.headers["location"]


def consent(link: str) -> str:
    """The subject consents at the provider. Returns where Evergrant sends the browser."""
    back = httpx2.post(link).headers["location"]
    assert back.startswith(f"{CONNECTED}?evergrant_code=")
    return back


def of(fake: FakeEvergrant, subject: str) -> FakeConnection:
    return next(it for it in fake.connections.values() if it.subject == subject)


@pytest.mark.parametrize("framework", ["fastapi", "flask", "django"])
async def test_the_person_who_finishes_is_the_one_who_began(
    framework: str, fake_evergrant: FakeEvergrant, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SESSION_SECRET", "for-this-test-only")
    example = import_module(f"examples.web.{framework}_app")
    transport = httpx2.ASGITransport(app=example.app) if framework == "fastapi" else InThread(example.app)
    async with AsyncExitStack() as stack:
        alice, mallory = [await stack.enter_async_context(Browser(transport)) for _ in range(2)]
        await alice.log_in("alice")
        await mallory.log_in("mallory")

        await a_victim_finishes_the_attackers_link(fake_evergrant, alice, mallory)
        await the_honest_person_is_connected(fake_evergrant, alice)
        declined = await mallory.open(f"{CONNECTED}?connection_id=con_9&state=denied")
        assert declined == "/?evergrant=denied"
        failed = await mallory.open(f"{CONNECTED}?connection_id=con_9&state=failed&error=consent_expired")
        assert failed == "/?evergrant=consent_expired"
        assert await mallory.open(f"{CONNECTED}?state=%3Cscript%3E") == "/?evergrant=failed"
        assert await mallory.open(f"{CONNECTED}?state=failed&error=%3Cb%3E") == "/?evergrant=failed"
        closed = example.evergrant.aclose() if framework == "fastapi" else example.evergrant.close()
        assert closed is None or await closed is None


async def a_victim_finishes_the_attackers_link(fake: FakeEvergrant, alice: Browser, mallory: Browser) -> None:
    back = consent(await mallory.begin())
    assert await alice.open(back) == "/?evergrant=subject_mismatch"
    assert await mallory.open(back) == "/?evergrant=subject_mismatch", "her code is worth nothing to him"
    assert of(fake, "mallory").state is State.PENDING_CONSENT


async def the_honest_person_is_connected(fake: FakeEvergrant, alice: Browser) -> None:
    link = await alice.begin()
    late = consent(link)
    fake.clock.advance(timedelta(minutes=2))
    assert await alice.open(late) == link, "she may try again at once"
    back = consent(link)
    assert await alice.open(back) == "/?evergrant=active"
    assert (await alice.get("/")).text == "connected"
    confirmed = fake.requests[-2].body
    assert (confirmed["subject"], "verifier" in confirmed) == ("alice", True)

    cookies = dict(alice.cookies)
    alice.cookies.clear()
    login = urlsplit(await alice.open(back))
    assert (login.path, parse_qs(login.query)["next"]) == ("/login", [back.removeprefix(BASE)])
    alice.cookies.update(cookies)
    assert await alice.open(back) == "/?evergrant=active", "a page that is loaded twice says the same"
