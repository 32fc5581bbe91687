"""Who gets into the console, by what, and until when: the key itself stays out of the browser.

ASVS 5.0 chapter 7.
"""

import pytest
from sqlalchemy import text

from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import disable_tenant
from tests.security.console import KEY_COOKIE, ConsoleBrowser, at_console
from tests.security.isolation.routes import routes


async def is_in(browser: ConsoleBrowser) -> bool:
    return (await browser.browser.get("/console/connections")).status_code == 200


async def test_without_a_session_every_page_leads_to_the_login(api: Api):
    open_to_all = {"GET /console/login", "POST /console/login", "GET /console/static/{name}"}
    guarded = [it for it in routes(api.app) if " /console" in it and it not in open_to_all]
    assert len(guarded) > 8
    for route in guarded:
        method, path = route.split(" ")
        answer = await ConsoleBrowser(api).browser.request(
            method, path, headers={"Origin": "https://evergrant.test"}
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login"), route
    answer = await ConsoleBrowser(api).browser.get("/console/connections", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/console/login")


async def test_the_key_is_exchanged_for_a_cookie_and_is_in_no_answer_and_no_row(api: Api):
    key = await api.app_with("boss", Action.ADMIN)
    browser = ConsoleBrowser(api)
    answer = await browser.log_in(f"  {key}\n")
    assert answer.status_code == 303
    (cookie,) = [it for it in answer.headers.get_list("set-cookie") if it.startswith(KEY_COOKIE)]
    for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=3600"):
        assert part in cookie
    assert "Domain" not in cookie
    value = browser.browser.cookies[KEY_COOKIE]
    async with api.worker.read() as tx:
        rows = str([*await tx.connection.execute(text("SELECT * FROM key_session"))])
    secret = value.rpartition("_")[2]
    assert secret not in rows
    page = await browser.page("/console/connections")
    for hidden in (key, key[-20:], secret):
        assert hidden not in cookie.replace(secret, "") + page
    (record,) = await api.records(AuditAction.KEY_LOGGED_IN)
    assert record.context.by == "app:boss"
    assert secret not in str(record)


@pytest.mark.parametrize("key", ["", "evg_key_x", "evg_ses_" + "0" * 43, "{key}x", "{key}\0"])
async def test_what_is_no_key_is_refused_with_a_page_that_says_so(api: Api, key: str):
    given = key.replace("{key}", await api.app_with("boss", Action.ADMIN))
    answer = await ConsoleBrowser(api).log_in(given)
    assert answer.status_code == 401
    assert "unauthenticated" in answer.text
    assert not given or given not in answer.text
    assert KEY_COOKIE not in str(answer.headers)


async def test_csrf_another_site_logs_no_browser_in(api: Api):
    """Login CSRF: the subject of an attack would work in the attacker's account."""
    key = await api.app_with("boss", Action.ADMIN)
    answer = await ConsoleBrowser(api).log_in(key, Origin="https://evil.example")
    assert (answer.status_code, KEY_COOKIE in str(answer.headers)) == (403, False)
    assert 'href="https://evergrant.test/console"' in answer.text, "where to go, for who typed localhost"
    sent = {"csrf": "0" * 64, "key": key}
    answer = await ConsoleBrowser(api).browser.post(
        "/console/login", data=sent, headers={"Origin": "https://evergrant.test"}
    )
    assert (answer.status_code, KEY_COOKIE in str(answer.headers)) == (400, False)


async def test_the_cookie_opens_nothing_but_the_console(api: Api):
    """A stolen cookie leases no token: the API takes it neither as a cookie nor as a bearer token."""
    connection, key = await api.active_for("boss", *Action)
    browser = await at_console(api, key)
    value = browser.browser.cookies[KEY_COOKIE]
    path = f"/v1/connections/{connection.id}/token"
    for headers in ({}, {"Authorization": f"Bearer {value}"}, {"Authorization": f"Bearer evg_ses_{value}"}):
        answer = await browser.browser.post(
            path, json={}, headers={"Origin": "https://evergrant.test", **headers}
        )
        assert answer.status_code == 401
        assert (await browser.browser.get("/v1/connections", headers=headers)).status_code == 401


async def test_it_ends_with_its_hour_its_key_its_app_and_the_log_out(api: Api):
    key, other = await api.app_with("boss", Action.ADMIN), await api.app_with("other", Action.ADMIN)
    browsers = [await at_console(api, it) for it in (key, key, other)]
    await browsers[0].send("/console/logout")
    assert [await is_in(it) for it in browsers] == [False, True, True]
    (ended,) = await api.records(AuditAction.SESSION_ENDED)
    assert ended.context.by == "app:boss"

    answer = await api.call("DELETE", f"/v1/apps/boss/keys/{key[4:30]}", other)
    assert answer.status_code == 204
    assert [await is_in(it) for it in browsers] == [False, False, True]

    app = await api.app_named("other")
    async with api.worker.write() as tx:
        app = await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)
    answer = await browsers[2].browser.get("/console/connections")
    assert (answer.status_code, "app_disabled" in answer.text) == (403, True)
    async with api.worker.write() as tx:
        await tx.access.put_app(app.model_copy(update={"disabled": False}), expected=app.revision)
    async with api.worker.write() as tx:
        await disable_tenant(tx, TENANT)
    answer = await browsers[2].browser.get("/console/connections")
    assert (answer.status_code, "tenant_disabled" in answer.text) == (403, True)
    assert await set_disabled(api.worker, api.clock, TENANT, "a test", disabled=False)
    api.clock.advance(3599)
    assert await is_in(browsers[2])
    api.clock.advance(1)
    assert not await is_in(browsers[2])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE key_session SET expires_at = '2099-01-01 00:00:00.000000'",
        "UPDATE key_session SET key_id = (SELECT id FROM app_key WHERE id <> key_id)",
        "UPDATE key_session SET secret_hash = '{hash}'",
        "UPDATE app_key SET revoked_at = NULL",
    ],
)
async def test_invariant_11_a_session_that_was_changed_by_hand_is_none(api: Api, change: str):
    key = await api.app_with("boss", Action.ADMIN)
    browser = await at_console(api, key)
    other = await api.app_with("other", Action.ADMIN)
    if "app_key SET" in change:
        await api.call("DELETE", f"/v1/apps/boss/keys/{key[4:30]}", other)
    async with api.worker.write() as tx:
        await tx.connection.execute(text(change.replace("{hash}", "0" * 64)))
    assert not await is_in(browser)


async def test_sessions_that_are_over_and_those_of_a_deleted_app_leave_no_row(api: Api):
    boss, other = await api.app_with("boss", Action.ADMIN), await api.app_with("other", Action.ADMIN)
    await at_console(api, boss)
    await at_console(api, other)
    assert (await api.call("DELETE", "/v1/apps/other", boss)).status_code == 204
    api.clock.advance(3601)
    async with api.worker.write() as tx:
        assert await tx.key_sessions.prune(api.clock.now()) == 1
        left = await tx.connection.execute(text("SELECT count(*) FROM key_session"))
        assert left.scalar_one() == 0
