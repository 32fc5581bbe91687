"""API keys and requests for access in the console: who may, shown once, decided by another, never twice."""

import re
from datetime import timedelta

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import STEP_UP_LASTS
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.isolation.world import a_world
from tests.security.people import ORIGIN

KEYS = "/console/apps/boss/keys"
KEY = re.compile(r'value="(evg_key_[\w-]+)"')
ASKED = {"permit": {"integration": "crm", "actions": ["token"]}, "reason": "<b>the audit", "lifetime": 3600}


async def an_admin(api: Api, *actions: Action) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", *(actions or (Action.ADMIN,))))


async def once_of(browser: ConsoleBrowser) -> str:
    found = re.search(r'name="once" value="([\w-]{43})"', await browser.page(KEYS))
    assert found is not None
    return found[1]


async def live_keys(api: Api) -> int:
    app, now = await api.app_named("boss"), api.clock.now()
    async with api.worker.read() as tx:
        return len(await tx.access.live_keys(TENANT, app.id, now))


async def test_a_key_is_shown_in_one_answer_and_works(api: Api, caplog: pytest.LogCaptureFixture):
    browser = await an_admin(api)
    made = await browser.send(KEYS, once=await once_of(browser), days="30")
    (key,) = KEY.findall(made.text)
    assert (made.status_code, made.headers["cache-control"]) == (200, "no-store")
    assert "location" not in made.headers, "no address has it"
    assert (await api.get("/v1/apps", key)).status_code == 200
    (record,) = await api.records(AuditAction.KEY_CREATED)
    assert record.context.by == "app:boss"
    ends = (api.clock.now() + timedelta(days=30)).isoformat()
    assert record.detail["expires_at"] == ends
    shown = await browser.page("/console/apps/boss") + await browser.page(KEYS)
    for place in (shown, caplog.text, str(record)):
        assert key not in place
    assert record.object in shown


async def test_one_form_makes_one_key_however_often_it_is_sent(api: Api):
    browser, before = await an_admin(api), await live_keys(api)
    once = await once_of(browser)
    (key,) = KEY.findall((await browser.send(KEYS, once=once)).text)
    for days in ("", "30"):  # a reload, and the form again with another end
        again = await browser.send(KEYS, once=once, days=days)
        assert (again.status_code, key in again.text) == (409, False)
    assert await live_keys(api) == before + 1


@pytest.mark.parametrize(
    "sent", [{"days": "x"}, {"days": "99999"}, {"days": "-1"}, {"days": "0"}, {"once": ""}]
)
async def test_what_no_form_sends_makes_no_key(api: Api, sent: dict[str, str]):
    browser, before = await an_admin(api), await live_keys(api)
    answer = await browser.send(KEYS, **{"once": await once_of(browser), **sent})
    assert (answer.status_code, "invalid_request" in answer.text) == (400, True)
    assert await live_keys(api) == before


async def test_a_revoked_key_ends_its_own_session(api: Api):
    browser = await an_admin(api)
    page = await browser.page("/console/apps/boss")
    (path,) = re.findall(r'href="(/console/apps/boss/keys/key_\w+/revoke)"', page)
    assert "This session is the key" in await browser.page(path)
    assert await live_keys(api) == 1, "the question changes nothing"
    answer = await browser.send(path)
    assert answer.headers["location"] == "/console/apps/boss?done=key-revoked"
    assert await live_keys(api) == 0
    assert (await browser.browser.get("/console/apps")).headers["location"] == "/console/login"


async def test_decided_by_another_with_note_and_end(api: Api):
    await api.integration()
    asking = await api.app_with("asking", Action.CONNECT)
    id = (await api.post("/v1/access-requests", asking, ASKED)).json()["id"]
    browser = await an_admin(api)
    page = await browser.page("/console/requests")
    assert f"/console/requests/{id}" in page
    page += await browser.page(f"/console/requests/{id}")
    assert (page.count("&lt;b&gt;the audit"), "<b>" in page) == (2, False)
    for hours in ("nan", "1e400", "-1", "soon"):
        assert (await browser.send(f"/console/requests/{id}/approve", hours=hours)).status_code == 400
    answer = await browser.send(f"/console/requests/{id}/approve", hours="2", note="until it is over")
    assert answer.headers["location"] == f"/console/requests/{id}?done=approved"
    (record,) = await api.records(AuditAction.ACCESS_APPROVED)
    assert (record.context.by, record.detail["note"]) == ("app:boss", "until it is over")
    assert record.detail["ends_at"] == (api.clock.now() + timedelta(hours=2)).isoformat()
    page = await browser.page(answer.headers["location"])
    assert "approved" in page
    assert f"{id}/approve" not in page
    again = await browser.send(f"/console/requests/{id}/deny")
    assert (again.status_code, "It waits no longer" in again.text) == (400, True)


async def test_who_asks_sees_the_own_request_and_decides_nothing(api: Api):
    await api.integration()
    ids = []
    for name in ("asking", "other"):
        key = await api.app_with(name, Action.CONNECT)
        ids.append((await api.post("/v1/access-requests", key, ASKED)).json()["id"])
        browser = await at_console(api, key)
    page = await browser.page("/console/requests")
    assert (ids[0] in page, ids[1] in page) == (False, True)
    assert (await browser.browser.get(f"/console/requests/{ids[0]}")).status_code == 404
    assert (await browser.send(f"/console/requests/{ids[0]}/withdraw")).status_code == 404
    page = await browser.page(f"/console/requests/{ids[1]}")
    assert re.findall(rf"{ids[1]}/(\w+)", page) == ["withdraw"]
    for act in ("approve", "deny"):
        assert (await browser.send(f"/console/requests/{ids[1]}/{act}")).status_code == 403
    assert (await browser.send(f"/console/requests/{ids[1]}/withdraw")).status_code == 303
    assert await api.records(AuditAction.ACCESS_APPROVED, AuditAction.ACCESS_DENIED) == []


async def test_dangerous_acts_need_a_login_of_moments_ago_and_admin(api: Api):
    own = await a_world(api, TENANT)
    made = {"once": "o" * 43}
    acts = (f"/console/apps/{own['app']}/keys", f"/console/requests/{own['request_id']}/approve")
    before = len(await api.records(AuditAction.KEY_CREATED))
    stale = api.clock.now() - STEP_UP_LASTS
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, authenticated_at=stale)
    for path in acts:
        answer = await browser.send(path, **made)
        assert (answer.status_code, "step_up_required" in answer.text) == (403, True)
        assert "/login?tenant=acme&amp;step_up=true" in answer.text, "the page leads there"
    assert (await browser.send(f"{acts[0]}/{own['key_id']}/revoke")).status_code == 303, "never in the way"
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    page = await auditor.page(f"/console/apps/{own['app']}") + await auditor.page("/console/requests")
    assert f"/console/apps/{own['app']}/keys" not in page
    for path in (*acts, f"{acts[0]}/{own['key_id']}/revoke", f"/console/requests/{own['request_id']}/deny"):
        assert (await auditor.send(path, **made)).status_code == 403
    assert (await auditor.browser.get(acts[0])).status_code == 403
    assert len(await api.records(AuditAction.KEY_CREATED)) == before
    fresh = await person_at_console(api, PersonRole.TENANT_ADMIN)
    assert len(KEY.findall((await fresh.send(acts[0], **made)).text)) == 1
    assert (await fresh.send(acts[1])).status_code == 303


async def test_four_eyes_a_key_waits_for_another_admin_and_the_same_form_makes_it(api: Api):
    api.parts.settings.four_eyes = True
    browser = await an_admin(api)
    once = await once_of(browser)
    waits = await browser.send(KEYS, once=once)
    assert (waits.status_code, "approval_required" in waits.text) == (403, True)
    assert 'href="/console/approvals">To what waits for a second admin' in waits.text
    page = await browser.page("/console/requests")
    assert "POST /console/apps/boss/keys" in page
    assert "/console/approvals/" not in page, "not by the same app"
    assert '<span class="soft">app now:</span> id app_' in page, "what the name stands for"
    other = await at_console(api, await api.app_with("other", Action.ADMIN))
    (path,) = re.findall(r'action="(/console/approvals/apr_\w+)"', await other.page("/console/requests"))
    assert (await browser.send(path)).status_code == 403
    approved = await other.send(path)
    assert approved.headers["location"] == "/console/approvals?done=command"
    assert "The command is approved." in await other.page("/console/approvals?done=command")
    assert "by app:other; it is to be sent again" in await browser.page("/console/requests")
    assert len(KEY.findall((await browser.send(KEYS, once=once)).text)) == 1


async def test_csrf_another_sites_form_neither_makes_a_key_nor_decides(api: Api):
    own = await a_world(api, TENANT)
    browser = await an_admin(api)
    token = await browser.csrf("/console/connections")
    key = f"/console/apps/{own['app']}/keys/{own['key_id']}/revoke"
    acts = [f"/console/requests/{own['request_id']}/{it}" for it in ("approve", "deny", "withdraw")]
    for path in (KEYS, key, *acts, f"/console/approvals/{own['approval_id']}"):
        for csrf, headers in ((token, {"Origin": "https://evil.example"}), ("0" * 64, {"Origin": ORIGIN})):
            sent = {"csrf": csrf, "once": "o" * 43}
            answer = await browser.browser.post(path, data=sent, headers=headers)
            assert answer.status_code in (400, 403), path
    decided = (AuditAction.ACCESS_APPROVED, AuditAction.ACCESS_DENIED, AuditAction.ACCESS_WITHDRAWN)
    assert await api.records(*decided, AuditAction.KEY_REVOKED, AuditAction.APPROVAL_GIVEN) == []
