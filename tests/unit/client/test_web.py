"""The examples of `evergrant.web`, each in its framework: the person who finishes is the one who began."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from evergrant import State
from evergrant.api.fields import Fields
from evergrant.api.models import Connection
from evergrant.testing import FakeConnection, FakeEvergrant
from evergrant.testing.connections import connection_body
from evergrant.web import Offer
from evergrant.web.settings_page import connections_body, outcome

from evergrant_server.core.errors import FAILURES, ErrorCode
from evergrant_server.core.errors.kinds import FailureKind, Repairer
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
        await a_script_of_the_page_lists_connects_and_ends(fake_evergrant, alice, framework)
        await another_site_ends_nothing_and_a_failure_says_whose_turn_it_is(fake_evergrant, alice)
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


# --- the settings page --------------------------------------------------------------------

SCRIPT = {"Accept": "application/json", "Sec-Fetch-Site": "same-origin"}
# codes of which the browser brings none, or which are an agent's or a caller's own
ELSEWHERE = {
    *(ErrorCode.AGENT_ENDED, ErrorCode.DELEGATION_ENDED, ErrorCode.APPROVAL_REQUIRED, ErrorCode.CLIENTS_OFF),
    *(ErrorCode.CALL_APPROVAL_REQUIRED, ErrorCode.SCOPE_NOT_NARROWED, ErrorCode.STEP_UP_REQUIRED),
    *(ErrorCode.CROSS_SITE_REQUEST, ErrorCode.TOKEN_RENEWED, ErrorCode.API_LIMIT_REACHED),
}
TURNS = {
    Repairer.SUBJECT: "you",
    Repairer.INTEGRATION_ADMIN: "admin",
    Repairer.PERMIT_ADMIN: "admin",
    Repairer.CALLER: "admin",
    Repairer.TIME: "time",
    Repairer.OPERATOR: "operator",
}


def accounts_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
    (crm,) = answer.json()["integrations"]
    assert (crm["integration"], crm["title"], crm["several"]) == ("crm", "The CRM", True)
    return crm["accounts"]


async def a_script_of_the_page_lists_connects_and_ends(
    fake: FakeEvergrant, alice: Browser, framework: str
) -> None:
    listed = await alice.get("/evergrant/connections", headers=SCRIPT)
    assert [own["label"] for own in accounts_of(listed)] == ["default"]
    headers = SCRIPT | listed.json()["headers"]
    assert bool(listed.json()["headers"]) is (framework == "django"), "its CSRF token"
    begun = await alice.post("/evergrant/connect/crm?label=account-2", headers=headers)
    assert begun.status_code == 200, begun.text
    assert await alice.open(consent(begun.json()["url"])) == "/?evergrant=active"

    of(fake, "alice").account = "alice@example.org"
    bobs = fake.connect("crm", "bob")
    listed = await alice.get("/evergrant/connections?evergrant=active", headers=SCRIPT)
    shown = [(own["label"], own["account"], own["status"]) for own in accounts_of(listed)]
    assert shown == [("default", "alice@example.org", "connected"), ("account-2", None, "connected")]
    assert listed.json()["notice"] == {"status": "connected", "turn": None, "reason": "It is connected."}

    for _ in range(2):  # ending twice ends once
        ended = await alice.post("/evergrant/disconnect/crm?label=account-2", headers=headers)
        assert (ended.status_code, ended.content) == (204, b"")
    listed = await alice.get("/evergrant/connections", headers=SCRIPT)
    assert [own["label"] for own in accounts_of(listed)] == ["default"]
    assert bobs.state is State.ACTIVE


async def another_site_ends_nothing_and_a_failure_says_whose_turn_it_is(
    fake: FakeEvergrant, alice: Browser
) -> None:
    mine = of(fake, "alice")
    csrf = (await alice.get("/evergrant/connections", headers=SCRIPT)).json()["headers"]
    for site in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ):
        for act in ("connect", "disconnect"):
            refused = await alice.post(f"/evergrant/{act}/crm", headers=csrf | site)
            assert refused.status_code == 403, refused.text
    assert mine.state is State.ACTIVE
    own = {"Origin": BASE, "Accept": "application/json", **csrf}
    fake.fail("client_rejected", kind="ClientMisconfigured", status=424)
    failed = await alice.post("/evergrant/disconnect/crm", headers=own)
    reason = "The way to The CRM isn't set up here as it should be."
    assert (failed.status_code, failed.json()) == (
        503,
        {"status": "failed", "turn": "admin", "reason": reason},
    )
    mine.lose()
    (lost,) = accounts_of(await alice.get("/evergrant/connections", headers=SCRIPT))
    assert (lost["status"], lost["turn"]) == ("reconnect", "you")
    assert lost["reason"] == "The CRM no longer accepts the access that you gave."
    alice.cookies.clear()
    over = await alice.get("/evergrant/connections", headers=SCRIPT)
    assert (over.status_code, over.json()["url"]) == (401, "/login?next=%2F")


def test_each_code_with_which_a_consent_comes_back_says_whose_turn_it_is():
    """As the server's own table says."""
    codes = [
        code
        for code, rule in FAILURES.items()
        if rule.kind is not FailureKind.BAD_REQUEST and code not in ELSEWHERE
    ]
    told = {code.value: outcome(code.value) for code in codes}
    assert {code: notice.turn for code, notice in told.items()} == {
        code.value: TURNS[FAILURES[code].repairer] for code in codes
    }
    assert {notice.status for notice in told.values()} == {"failed"}
    states = ["active", "pending_consent", "denied", "no_such_code"]
    assert [outcome(state).status for state in states] == ["connected", "pending", "failed", "failed"]


def test_a_state_of_a_connection_has_words(fake_evergrant: FakeEvergrant):
    connection = fake_evergrant.connect("crm", "alice")
    clients = [Offer("crm", "The CRM"), Offer("erp", "The ERP")]

    def shown(**changes: Any) -> dict[str, Any]:
        row = replace(Fields.of(connection_body(connection), "connection").build(Connection), **changes)
        crm, erp = connections_body(clients, [row], None)["integrations"]
        assert erp["accounts"] == []
        return crm["accounts"][0] if crm["accounts"] else {}

    at = fake_evergrant.clock()
    assert shown()["status"] == "connected"
    failing = shown(failing_since=at, repairer="time")
    assert (failing["status"], failing["turn"]) == ("failing", "time")
    assert shown(failing_since=at, repairer="integration_admin")["turn"] == "admin"
    assert shown(reason="connection_held", repairer="permit_admin")["turn"] == "admin"
    assert shown(reason="choice_required", repairer="subject")["status"] == "choose"
    assert shown(state=State.PENDING_CONSENT)["turn"] == "you"
    assert shown(state=State.PENDING_CONSENT, repairer="integration_admin")["turn"] == "admin"
    assert shown(state=State.REVOKING)["status"] == "ending"
    assert shown(state=State.REVOKED) == {}
