"""Sessions of people who administer: cookies, ends, commands, and logins from moments ago.

ASVS 5.0 chapter 7; RFC 8252 for `evergrant login`.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from sqlalchemy import text

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.messages import jobs
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.pages.test_person_login import refused
from tests.security.people import (
    ROLES,
    PersonAt,
    client_at,
    logged_in,
    people_log_in,
    put_login,
    worker_for,
    works,
)

STATE, VERIFIER = "s" * 43, "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
COMMAND = {"port": "51234", "state": STATE, "challenge": CHALLENGE}


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


async def test_the_cookie_and_its_session_are_as_asvs_7_wants_them(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    issuer.person = {"sub": "ann", "groups": ["auditors"]}
    person = PersonAt(api)
    answer = await person.log_in()
    (cookie,) = [
        it for it in answer.headers.get_list("set-cookie") if it.startswith("__Host-evergrant-session=")
    ]
    for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=43200"):
        assert part in cookie
    assert "Domain" not in cookie
    assert person.cookie is not None
    async with api.worker.read() as tx:
        found = await tx.connection.execute(text("SELECT * FROM person_session"))
        assert person.cookie not in str([*found])


async def test_a_session_ends_after_30_minutes_idle_and_after_12_hours(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    idle, busy = await logged_in(api, issuer, "admins"), await logged_in(api, issuer, "admins")
    for _ in range(24):
        api.clock.advance(29 * 60 + 59)
        assert await works(busy)
    assert not await works(idle)
    api.clock.advance(24)
    assert not await works(busy)


async def test_an_admin_ends_a_session_at_once(api: Api, issuer: LoginIssuer):
    boss = await people_log_in(api, issuer)
    person, other = await logged_in(api, issuer, "admins"), await logged_in(api, issuer, "admins", sub="bob")
    own = (await person.call("GET", "/v1/sessions/current")).json()["id"]
    for _ in range(2):
        assert (await api.call("DELETE", f"/v1/sessions/{own}", boss)).status_code == 204
    assert not await works(person)
    assert (await api.call("DELETE", "/v1/sessions/ses_0000000000000000000000", boss)).status_code == 404
    assert (await other.call("DELETE", "/v1/sessions/current")).status_code == 204
    assert not await works(other)
    ended = await api.records(AuditAction.SESSION_ENDED)
    assert [it.context.by.partition(":")[0] for it in ended] == ["app", "person"]


async def test_the_page_logs_out_and_another_sites_form_does_not(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "auditors")
    await refused(await person.browser.post("/logout", data={"csrf": "0" * 64}))
    assert await works(person)
    answer = await person.browser.post("/logout", data={"csrf": await person.csrf("/session")})
    assert answer.status_code == 200
    assert person.cookie is None
    assert (await person.browser.get("/session")).headers["location"] == "/login"


async def test_a_change_of_where_people_log_in_ends_their_sessions(api: Api, issuer: LoginIssuer):
    boss = await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "admins")
    await put_login(api, boss)
    assert await works(person), "the same again changes nothing"
    await put_login(api, boss, roles={**ROLES, "tenant_admin": ["others"]})
    assert not await works(person)
    assert not any(it["live"] for it in (await api.get("/v1/sessions", boss)).json()["items"])
    assert (await api.call("DELETE", "/v1/admin-login", boss)).status_code == 204
    assert (await PersonAt(api).browser.get("/login")).status_code == 404


@pytest.mark.parametrize(
    "origin", [None, "https://evil.example", "null", "https://evergrant.test.evil.example"]
)
async def test_csrf_a_change_with_the_cookie_needs_our_own_origin(
    api: Api, issuer: LoginIssuer, origin: str | None
):
    await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "admins")
    headers = {} if origin is None else {"Origin": origin}
    answer = await person.browser.put("/v1/apps/made", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site_request")
    assert await api.records(AuditAction.APP_PUT) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE person_session SET role = 'tenant_admin'",
        'UPDATE person_session SET person = \'{"issuer": "x", "sub": "boss", "name": null}\'',
        "UPDATE person_session SET ended_at = NULL",
        "UPDATE person_session SET expires_at = '2099-01-01 00:00:00.000000'",
        'UPDATE admin_login SET roles = \'{"tenant_admin": ["auditors"]}\'',
        "UPDATE person_session SET rule = NULL",
    ],
)
async def test_invariant_11_rows_of_people_that_were_changed_by_hand_give_nothing(
    api: Api, issuer: LoginIssuer, change: str
):
    boss = await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "auditors")
    if "ended_at" in change:
        id = (await person.call("GET", "/v1/sessions/current")).json()["id"]
        await api.call("DELETE", f"/v1/sessions/{id}", boss)
    async with api.worker.write() as tx:
        await tx.connection.execute(text(change))
    assert not await works(person)


async def test_invariant_11_a_login_that_was_verified_by_hand_gives_no_session(api: Api, issuer: LoginIssuer):
    """Nor one whose role was raised between the worker and the API."""
    await people_log_in(api, issuer)
    issuer.person = {"sub": "eve", "groups": ["auditors"]}
    person, verify = PersonAt(api), api.link.on_job[jobs.VERIFY_PERSON.name]
    assert verify is not None

    async def raised(request: Any) -> Any:
        result = await verify(request)
        async with api.worker.write() as tx:
            await tx.connection.execute(text("UPDATE person_login SET role = 'tenant_admin'"))
        return result

    api.link.on_job[jobs.VERIFY_PERSON.name] = raised
    answer = await person.log_in()
    assert (answer.status_code, person.cookie) == (500, None)


# --- `evergrant login` --------------------------------------------------------------------


async def command_code(api: Api, issuer: LoginIssuer, group: str = "admins") -> str:
    issuer.person = {"sub": "ann", "groups": [group]}
    person = PersonAt(api)
    answer = await person.log_in(**COMMAND)
    there = urlsplit(answer.headers["location"])
    query = {name: values[0] for name, values in parse_qs(there.query).items()}
    assert (answer.status_code, there.scheme, there.netloc, there.path) == (
        303,
        "http",
        "127.0.0.1:51234",
        "/",
    )
    assert (query["state"], query["iss"], person.cookie) == (STATE, "https://evergrant.test", None)
    return query["code"]


async def test_rfc8252_a_command_gets_a_code_on_loopback_and_a_session_for_it(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    code = await command_code(api, issuer)
    body = {"code": code, "verifier": VERIFIER}
    made = (await api.post("/login/command", body=body)).json()
    assert (made["role"], made["tenant"]) == ("tenant_admin", TENANT)
    token = made["token"]
    own = (await api.get("/v1/sessions/current", token)).json()
    assert (own["kind"], own["person"]) == ("command", made["person"])
    replayed = await api.post("/login/command", body=body)
    assert (replayed.status_code, replayed.json()["code"]) == (400, "callback_invalid")
    person = PersonAt(api)
    person.browser.cookies.set("__Host-evergrant-session", token[8:], domain="evergrant.test")
    assert not await works(person), "a bearer is no cookie"
    assert (await api.call("DELETE", "/v1/sessions/current", token)).status_code == 204
    assert (await api.get("/v1/sessions/current", token)).status_code == 401


async def test_rfc7636_a_code_without_its_verifier_is_burned(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    code = await command_code(api, issuer)
    for verifier in ("w" * 43, VERIFIER):
        answer = await api.post("/login/command", body={"code": code, "verifier": verifier})
        assert (answer.status_code, answer.json()["code"]) == (400, "callback_invalid")


async def test_a_code_lasts_a_minute_and_is_good_once_among_parallel_requests(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    late = await command_code(api, issuer)
    api.clock.advance(60)
    assert (await api.post("/login/command", body={"code": late, "verifier": VERIFIER})).status_code == 400
    code = await command_code(api, issuer)
    body = {"code": code, "verifier": VERIFIER}
    answers = await asyncio.gather(*(api.post("/login/command", body=body) for _ in range(4)))
    assert sorted(it.status_code for it in answers) == [200, 400, 400, 400]


# --- step-up ------------------------------------------------------------------------------


async def test_step_up_dangerous_commands_need_a_login_from_moments_ago(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    seen_at = api.clock.now().timestamp()
    person = await logged_in(api, issuer, "admins", auth_time=seen_at - 301)
    await api.app_with("pipeline")
    await api.integration()
    permit = {"integration": "*", "actions": ["token"]}
    dangerous: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("PUT", "/v1/apps/pipeline/permits/all", permit),
        ("POST", "/v1/apps/pipeline/keys", {}),
        ("POST", "/v1/integrations/crm/rotate-secret", {"client_secret": "new"}),
        ("PUT", "/v1/admin-login", {"integration": "staff", "roles": {"auditor": ["x"]}}),
        ("DELETE", "/v1/admin-login", {}),
    )
    for method, path, body in dangerous:
        answer = await person.call(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "step_up_required"), path
        assert answer.json()["login_url"] == f"https://evergrant.test/login?tenant={TENANT}&step_up=true"
    asked = {"app": "pipeline", "permit": permit, "reason": "for a test"}
    waiting = (await person.call("POST", "/v1/access-requests", json=asked)).json()["id"]
    approve = await person.call("POST", f"/v1/access-requests/{waiting}/approve", json={})
    assert approve.json()["code"] == "step_up_required"
    own = await person.call("POST", "/v1/access-requests", json={**asked, "app": None})
    assert (own.status_code, own.json()["field"]) == (400, "app")
    harmless = {"integration": "*", "actions": ["connect"]}
    assert (await person.call("PUT", "/v1/apps/pipeline/permits/c", json=harmless)).status_code == 201
    stale = await person.log_in(step_up="true")
    assert (stale.status_code, "id_token_refused" in stale.text) == (409, True), "the issuer ignored max_age"
    issuer.person["auth_time"] = seen_at
    await person.log_in(step_up="true")
    assert person.sent["max_age"] == "300"
    for method, path, body in dangerous[:4]:
        assert (await person.call(method, path, json=body)).status_code < 300, path
    assert not await works(person), "the login was changed"


async def test_a_second_person_approves_after_a_step_up(tmp_path: Path):
    async with running_api(tmp_path, four_eyes=True) as api, LoginIssuer(api.clock.now) as issuer:
        worker_for(api, issuer)
        await client_at(api, issuer)
        boss, second = await api.app_with("boss", Action.ADMIN), await api.app_with("second", Action.ADMIN)
        body = {"integration": "staff", "roles": ROLES}
        waits = await api.call("PUT", "/v1/admin-login", boss, json=body)
        assert waits.json()["code"] == "approval_required"
        assert (await api.post(f"/v1/approvals/{waits.json()['approval_id']}", second)).status_code == 200
        await put_login(api, boss)
        now = api.clock.now().timestamp()
        ann = await logged_in(api, issuer, "admins", auth_time=now)
        bob = await logged_in(api, issuer, "admins", sub="bob", auth_time=now)
        await api.app_with("pipeline")
        waits = await ann.call("POST", "/v1/apps/pipeline/keys", json={})
        at = f"/v1/approvals/{waits.json()['approval_id']}"
        assert (await ann.call("POST", at)).json()["code"] == "not_permitted", "the own command"
        api.clock.advance(301)
        assert (await bob.call("POST", at)).json()["code"] == "step_up_required"
        bob = await logged_in(api, issuer, "admins", sub="bob", auth_time=now + 301)
        given = (await bob.call("POST", at)).json()
        ann = await logged_in(api, issuer, "admins", auth_time=now + 301)
        assert (await ann.call("POST", "/v1/apps/pipeline/keys", json={})).status_code == 201
        (made,) = await api.records(AuditAction.KEY_CREATED)
        assert made.context.by.startswith("person:psn_")
        assert made.context.by != made.detail["approved_by"] == given["approved_by"]
