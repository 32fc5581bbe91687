"""Agents in the console: exactly what one asks for, who decides, and the stop."""

import re
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.people.roles import Person, PersonRole
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.rows import a_delegation
from tests.security.console import at_console, person_at_console
from tests.security.pages.test_person_login import issuer
from tests.security.people import ORIGIN, PersonAt, people_log_in

__all__ = ["issuer"]

ANN = Person(issuer="https://login.example", sub="ann", name="ann@example.com")
HOSTILE = '<script>alert("x")</script>\u202e\u200b'


async def an_asking_agent(api: Api) -> str:
    """A call of an agent that waits, by a tool with hostile arguments."""
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await api.active(await api.integration(), lifetime=None)
    bot = await api.app_with("bot", Action.PROXY)
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()
    await api.call("PUT", "/v1/agents/bot", admin, json={"purpose": "refunds", "ends_at": ends_at})
    called: dict[str, Any] = {"tool": "pay", "arguments": {"to": HOSTILE}}
    asked = await api.post(
        "/v1/call-approvals", bot, {"connection_id": connection.id, **called, "reason": "order 7"}
    )
    return f"/console/call-approvals/{asked.json()['id']}"


async def test_a_person_sees_exactly_what_is_asked_for_and_approves_it(api: Api):
    path = await an_asking_agent(api)
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    assert path in await browser.page("/console/agents")
    page = await browser.page(path)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "[U+202E]" in page
    assert "[U+200B]" in page
    answer = await browser.send(f"{path}/approve", note="once")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    (record,) = await api.records(AuditAction.CALL_APPROVAL_APPROVED)
    assert record.context.by.startswith("person:psn_")
    assert record.detail["note"] == "once"
    page = await browser.page(path)
    assert "approved" in page
    assert "Approve this one call" not in page
    assert "No call waits" in await browser.page("/console/agents")


async def test_a_person_sees_the_whole_url_each_header_and_the_body(api: Api):
    await an_asking_agent(api)
    connection = await api.active(await api.integration("xero"), lifetime=None)
    names = {
        "Xero-Tenant-Id": "45e4708e",
        "Content-Type": "text/plain",
        "User-Agent": "agent/9",
        "X-Own": "ä\xad",
    }
    asked = await api.post(
        "/v1/call-approvals",
        await api.app_with("payer", Action.PROXY),
        {
            "connection_id": connection.id,
            "method": "POST",
            "url": "https://api.example/pay?to=bob&sum=5",
            "headers": [{"name": name, "value": value} for name, value in names.items()],
            "body": "five",
            "reason": "order 7",
        },
    )
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    page = await browser.page(f"/console/call-approvals/{asked.json()['id']}")
    assert "https://api.example/pay?to=bob&amp;sum=5" in page
    assert "content-type: text/plain\nx-own: ä[U+00AD]\nxero-tenant-id: 45e4708e</pre>" in page
    assert "five" in page
    assert "agent/9" not in page


@pytest.mark.parametrize("verb", ["approve", "deny"])
async def test_an_auditor_and_an_old_login_decide_nothing(api: Api, verb: str):
    path = await an_asking_agent(api)
    auditor = await person_at_console(api, PersonRole.AUDITOR, person=ANN)
    assert "Approve this one call" not in await auditor.page(path)
    assert (await auditor.send(f"{path}/{verb}")).status_code == 403
    admin = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    api.clock.advance(360)
    shown = await admin.page(path)
    assert "Log in again" in shown
    assert "Approve this one call" not in shown
    answer = await admin.send(f"{path}/approve")
    assert (answer.status_code, "Log in again" in answer.text) == (403, True)
    assert await api.records(AuditAction.CALL_APPROVAL_APPROVED, AuditAction.CALL_APPROVAL_DENIED) == []


async def test_a_link_to_an_approval_leads_there_after_the_login_and_nowhere_else(
    api: Api, issuer: LoginIssuer
):
    path = await an_asking_agent(api)
    await people_log_in(api, issuer)
    issuer.person = {"sub": "ann", "groups": ["admins"]}
    ann = PersonAt(api)
    first = await ann.browser.get(path)
    assert (first.status_code, first.headers["location"]) == (303, "/console/login")
    assert (await ann.log_in()).headers["location"] == path
    assert "Log in again" in (await ann.browser.get(path)).text, "the issuer didn't say when she logged in"
    issuer.person["auth_time"] = int(api.clock.now().timestamp())
    assert (await ann.log_in(step_up="true")).headers["location"] == path
    assert "Approve this one call" in (await ann.browser.get(path)).text
    elsewhere = PersonAt(api)
    for place in (
        *("//evil.example", "/console//evil.example", "/console/../x", "/console/login", "/v1/apps"),
        *("/consolex", "/console?x=//evil.example\\", "/console/login?x=1"),
    ):
        elsewhere.browser.cookies.set("evergrant-page", place)
        assert (await elsewhere.log_in()).headers["location"] == "/session"
        elsewhere.browser.cookies.clear()
    by_key = api.browser()
    await by_key.get(path)
    csrf = re.search('name="csrf" value="([0-9a-f]+)"', (await by_key.get("/console/login")).text)
    key = await api.app_with("decider", Action.ADMIN)
    form = {"csrf": csrf[1] if csrf else "", "key": key}
    came = await by_key.post("/console/login", data=form, headers={"Origin": ORIGIN})
    assert came.headers["location"] == path


async def test_an_agent_is_made_and_changed_by_a_form(api: Api):
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    new = "/console/new/agent"
    assert new in await browser.page("/console/agents")
    ends_at = f"{api.clock.now() + timedelta(days=30):%Y-%m-%dT%H:%M}"
    filled = {"name": "support", "purpose": "answers mails", "ends_at": ends_at}
    for field, text in (("name", "No Slug"), ("purpose", ""), ("ends_at", "2020-01-01T00:00")):
        refused = await browser.send(new, **{**filled, field: text})
        assert (refused.status_code, f'id="{field}-problem"' in refused.text) == (400, True), field
    answer = await browser.send(new, **filled)
    assert answer.headers["location"] == "/console/apps/support?done=agent-made"
    app = await api.app_named("support")
    assert f"An agent of {app.sponsor}: answers mails." in await browser.page("/console/apps/support")
    assert (app.purpose, (app.sponsor or "").startswith("person:psn_")) == ("answers mails", True)
    taken = await browser.send(new, **filled)
    assert (taken.status_code, "There is an agent of this name." in taken.text) == (409, True)

    await api.app_with("desk", Action.TOKEN)
    form = await browser.page("/console/agents/support/edit")
    assert ('value="answers mails"' in form, f'value="{ends_at}"' in form) == (True, True)
    assert '<option value="app:desk">the app desk</option>' in form
    assert '<option value="app:support"' not in form
    changed = {"purpose": "answers mails", "ends_at": ends_at, "sponsor": "app:desk"}
    assert (await browser.send("/console/agents/support/edit", **changed)).status_code == 303
    assert (await api.app_named("support")).sponsor == "app:desk"
    assert '<option value="app:desk" selected>' in await browser.page("/console/agents/support/edit")


async def test_an_app_becomes_an_agent_and_an_auditor_makes_none(api: Api):
    await api.app_with("bot", Action.TOKEN)
    ends_at = f"{api.clock.now() + timedelta(days=30):%Y-%m-%dT%H:%M}"
    filled = {"name": "bot", "purpose": "refunds", "ends_at": ends_at}
    auditor = await person_at_console(api, PersonRole.AUDITOR, person=ANN)
    assert "/console/new/agent" not in await auditor.page("/console/agents")
    for path in ("/console/new/agent", "/console/agents/bot/edit"):
        assert (await auditor.send(path, **filled)).status_code == 403
    assert not (await api.app_named("bot")).is_agent
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    assert (await browser.send("/console/new/agent", **filled)).status_code == 303
    assert (await api.app_named("bot")).sponsor == "app:boss"


async def test_an_agent_is_stopped_from_its_form(api: Api):
    await an_asking_agent(api)
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    assert "Stop it now?" in await browser.page("/console/agents/bot/stop")
    answer = await browser.send("/console/agents/bot/stop", reason="too much", revoke="yes")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/agents/bot/stop")
    page = await browser.page("/console/agents/bot/stop")
    assert "too much" in page
    assert "not yet" in page
    (record,) = await api.records(AuditAction.AGENT_STOPPED)
    assert (record.context.by, record.detail["revoke_connections"]) == ("app:boss", True)
    assert (await api.app_named("bot")).disabled
    auditor = await person_at_console(api, PersonRole.AUDITOR, TENANT, person=ANN)
    assert "Stop it now?" not in await auditor.page("/console/agents/bot/stop")
    assert (await auditor.send("/console/agents/bot/stop")).status_code == 403


async def test_a_person_reads_what_an_agent_can_reach_and_stops_it_from_there(api: Api):
    await an_asking_agent(api)
    admin = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    assert "/console/apps/bot/reach" in await admin.page("/console/agents")
    page = await admin.page("/console/apps/bot/reach")
    assert "May send requests to the API of every integration, for every subject." in page
    assert "user-1 at crm" in page
    assert "/console/agents/bot/stop" in page
    assert "People it acts for" not in page
    bot, now = await api.app_named("bot"), api.clock.now()
    ended, live = (a_delegation(bot, "key_1", subject, now) for subject in ("bob", "alice"))
    async with api.worker.write() as tx:
        await tx.delegations.add(live)
        await tx.delegations.add(ended.stopped("app:admin", "over", now))
    page = await admin.page("/console/apps/bot/reach")
    assert ("People it acts for" in page, "alice" in page, "bob" in page) == (True, True, False)
    assert "1 waits" in await admin.page("/console/agents/bot/stop")
    await admin.send("/console/agents/bot/stop")
    page = await admin.page("/console/apps/bot/reach")
    assert "Nothing at the moment" in page
    assert "app_disabled" in page
    assert "Stop this agent" not in page
    auditor = await person_at_console(api, PersonRole.AUDITOR, person=ANN)
    assert "May send requests" in await auditor.page("/console/apps/bot/reach")
