"""Approvals on `/me`: for the session of an admin who is the same person, by the rules of their routes."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.decisions import Approval
from evergrant_server.core.ids import ApprovalId, derived_id
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import SessionKind
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import AgentUser, agents_allowed, csrf_in
from tests.security.pages.test_me import issuer
from tests.security.people import COOKIE, ORIGIN, PersonAt, put_login, put_session

__all__ = ["issuer"]

HOSTILE = "<script>alert(1)</script>\u202e"


class Decider(AgentUser):
    """A browser of user-1 at `/me`, with another session of people who administer, if there is a role."""

    admin: str

    async def begin(
        self, role: PersonRole | None = PersonRole.TENANT_ADMIN, **session: Any
    ) -> httpx2.Response:
        _, self.admin = await agents_allowed(self.api, self.issuer)
        if role is not None:
            person = Person(issuer=self.issuer.issuer, sub="user-1", name="ann@example.com")
            asks = {"kind": SessionKind.BROWSER, "person": person, **session}
            _, bearer = await put_session(self.api, TENANT, role, **asks)
            self.browser.cookies.set(COOKIE, bearer.removeprefix("evg_ses_"), domain="evergrant.test")
        return await self.ask("/me")

    async def call_of_agent(self, sponsor: str | None = None) -> str:
        """The path of the page where an agent's call is decided."""
        bot = await self.api.app_with("bot", Action.PROXY)
        ends_at = (self.api.clock.now() + timedelta(days=1)).isoformat()
        agent = {"purpose": "refunds", "ends_at": ends_at} | ({"sponsor": sponsor} if sponsor else {})
        made = await self.api.call("PUT", "/v1/agents/bot", self.admin, json=agent)
        assert made.is_success, made.text
        (connection,) = (await self.api.get("/v1/connections", self.admin)).json()["items"]
        call = {"connection_id": connection["id"], "tool": "pay", "arguments": {"to": HOSTILE}}
        asked = await self.api.post("/v1/call-approvals", bot, {**call, "reason": "order 7"})
        return f"/me/approvals/{asked.json()['id']}"

    async def send(self, path: str, decision: str, origin: str | None = ORIGIN) -> httpx2.Response:
        csrf = csrf_in(await self.browser.get("/me"))
        headers = {} if origin is None else {"Origin": origin}
        return await self.browser.post(f"{path}/{decision}", data={"csrf": csrf}, headers=headers)


@pytest.fixture
def user(api: Api, issuer: LoginIssuer) -> Decider:
    return Decider(api, issuer)


async def test_a_person_sees_exactly_what_waits_and_decides_it_by_the_api_s_own_act(api: Api, user: Decider):
    assert "Nothing waits for your decision" in (await user.begin()).text
    path = await user.call_of_agent()
    listed = (await user.browser.get("/me")).text
    assert (path in listed, "bot asks to call crm as user-1: pay" in listed) == (True, True)
    page = (await user.browser.get(path)).text
    assert ("<script>" in page, "&lt;script&gt;" in page, "[U+202E]" in page) == (False, True, True)
    decided = await user.send(path, "approve")
    assert (decided.status_code, decided.headers["location"]) == (303, "/me?tenant=acme&done=approved")
    (record,) = await api.records(AuditAction.CALL_APPROVAL_APPROVED)
    assert record.context.by.startswith("person:psn_")
    after = (await user.browser.get(decided.headers["location"])).text
    assert ("You have approved it" in after, path in after) == (True, False)
    assert "waits no longer" in (await user.browser.get(path)).text
    assert (await user.send(path, "deny")).status_code == 400, "it is decided"
    assert (await user.send(path, "forget")).status_code == 400


@pytest.mark.parametrize(
    ("role", "session"),
    [
        (None, {}),
        (PersonRole.AUDITOR, {}),
        (PersonRole.TENANT_ADMIN, {"person": Person(issuer="https://login.example", sub="user-1")}),
    ],
    ids=["no session", "an auditor's", "another person's"],
)
async def test_who_decides_nothing_sees_nothing_and_is_led_to_the_login(
    api: Api, user: Decider, role: PersonRole | None, session: dict[str, Any]
):
    page = await user.begin(role, **session)
    assert "waits for" not in page.text, "and nobody who administers logs in here at all"
    path = await user.call_of_agent()
    assert path not in (await user.browser.get("/me")).text
    for answer in (await user.browser.get(path), await user.send(path, "approve")):
        assert (answer.status_code, answer.headers["location"]) == (303, f"{ORIGIN}/login?tenant=acme")
    assert await api.records(AuditAction.CALL_APPROVAL_APPROVED) == []


async def test_the_login_of_people_who_administer_leads_back(api: Api, user: Decider):
    await user.begin(role=None)
    await put_login(api, user.admin)
    path = await user.call_of_agent()
    assert "/me/approvals?tenant=acme" in (await user.browser.get("/me")).text
    person = PersonAt(api)
    person.browser = user.browser
    user.issuer.person = {"sub": "user-1", "groups": ["admins"]}
    for asked, back in (("/me/approvals", "/me"), (path, path)):
        await user.browser.get(asked)
        assert (await person.log_in()).headers["location"] == f"{back}?tenant=acme"
    assert "Log in again" in (await user.browser.get(path)).text, (
        "the issuer didn't say when it saw the person"
    )
    user.browser.cookies.clear()
    assert (await user.browser.get("/me/approvals")).status_code == 401


async def test_an_approval_needs_a_login_of_moments_ago_and_a_page_of_our_own(api: Api, user: Decider):
    await user.begin(authenticated_at=api.clock.now() - timedelta(minutes=6))
    path = await user.call_of_agent()
    page = (await user.browser.get(path)).text
    assert ("Log in again" in page, "Approve exactly this" in page) == (True, False)
    refused = await user.send(path, "approve")
    assert (refused.status_code, "step_up_required" in refused.text) == (403, True)
    for origin in (None, "https://elsewhere.example", "null"):
        refused = await user.send(path, "deny", origin)
        assert (refused.status_code, "cross_site_request" in refused.text) == (403, True)
    assert await api.records(AuditAction.CALL_APPROVAL_DENIED) == []
    assert (await user.send(path, "deny")).status_code == 303, "ending needs no fresh login"
    assert len(await api.records(AuditAction.CALL_APPROVAL_DENIED)) == 1


async def test_requests_for_access_and_commands_of_others_are_decided_there(api: Api, user: Decider):
    await user.begin()
    report = await api.app_with("report", Action.TOKEN)
    permit = {"integration": "crm", "subjects": ["ann"], "actions": ["token"]}
    asked = await api.post("/v1/access-requests", report, {"permit": permit, "reason": "the audit"})
    command = Approval(
        tenant=TENANT,
        id=ApprovalId(derived_id("apr", "one")),
        app_id=(await api.app_named("boss")).id,
        by="app:boss",
        command="PUT /v1/webhooks/all",
        body={"url": HOSTILE},
        resolves_to={},
        created_at=api.clock.now(),
        expires_at=api.clock.now() + timedelta(days=1),
    )
    async with api.worker.write() as tx:
        await tx.approvals.put(command, expected=None)
    listed = (await user.browser.get("/me")).text
    assert ("report asks for access" in listed, "boss sends a command" in listed) == (True, True)
    path = f"/me/approvals/{command.id}"
    page = (await user.browser.get(path)).text
    assert ("&lt;script&gt;" in page, "Deny it" in page) == (True, False)
    assert (await user.send(path, "approve")).status_code == 303
    (record,) = await api.records(AuditAction.APPROVAL_GIVEN)
    assert record.context.by.startswith("person:psn_")
    path = f"/me/approvals/{asked.json()['id']}"
    assert "token" in (await user.browser.get(path)).text
    assert (await user.send(path, "approve")).status_code == 303
    assert len(await api.records(AuditAction.ACCESS_APPROVED)) == 1
    for absent in ("apr_1", "cap_0000000000000000000000", "con_1"):
        assert (await user.browser.get(f"/me/approvals/{absent}")).status_code == 404
