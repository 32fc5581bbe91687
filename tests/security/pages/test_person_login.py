"""The login of people who administer, at the tenant's issuer, and the sessions that it gives.

OpenID Connect Core 1.0; ASVS 5.0 chapters 7 (sessions) and 10.5 (OIDC clients).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.people import PersonAt, client_at, logged_in, people_log_in, put_login


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


async def test_core_5_7_a_person_is_iss_and_sub_and_has_the_role_of_a_group(api: Api, issuer: LoginIssuer):
    boss = await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "admins", email="ann@corp.example")
    asked = person.sent
    assert (asked["scope"], asked["response_type"], asked["code_challenge_method"]) == (
        "openid",
        "code",
        "S256",
    )
    own = (await person.call("GET", "/v1/sessions/current")).json()
    said = (own["sub"], own["issuer"], own["name"], own["role"], own["kind"])
    assert said == ("ann", issuer.issuer, "ann@corp.example", "tenant_admin", "browser")
    assert (await person.call("PUT", "/v1/apps/made", json={})).status_code == 201
    (record,) = await api.records(AuditAction.APP_PUT)
    assert record.context.by == f"person:{own['person']}"
    (login,) = await api.records(AuditAction.PERSON_LOGGED_IN)
    assert (login.object, login.detail["sub"], login.detail["session"]) == (own["person"], "ann", own["id"])
    (listed,) = (await api.get("/v1/sessions", boss)).json()["items"]
    assert (listed["id"], listed["live"]) == (own["id"], True)
    again = await logged_in(api, issuer, "admins", email="ann@other.example")
    assert (await again.call("GET", "/v1/sessions/current")).json()["person"] == own["person"]
    for token in ("access_token", "refresh_token"):
        assert token not in (await person.browser.get("/session")).text


async def test_an_auditor_reads_and_changes_nothing(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    person = await logged_in(api, issuer, "board")
    for path in ("apps", "audit", "access", "sessions", "admin-login", "webhooks"):
        assert (await person.call("GET", f"/v1/{path}")).status_code == 200
    for method, path in (
        ("PUT", "/v1/apps/made"),
        ("DELETE", "/v1/admin-login"),
        ("DELETE", "/v1/sessions/x"),
    ):
        refused = await person.call(method, path, json={})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")


@pytest.mark.parametrize(
    "groups", [None, [], "other", ["Admins", "admins2", "adm*"], [["admins"]], {"admins": 1}]
)
async def test_without_exactly_a_group_of_a_role_there_is_no_session(
    api: Api, issuer: LoginIssuer, groups: Any
):
    await people_log_in(api, issuer)
    issuer.person, issuer.told = {"sub": "eve", "groups": groups}, {"sub": "eve"}
    person = PersonAt(api)
    answer = await person.log_in()
    assert (answer.status_code, "not_permitted" in answer.text) == (403, True)
    assert person.cookie is None
    (record,) = await api.records(AuditAction.PERSON_REFUSED)
    assert (record.detail["sub"], record.detail["reason"]) == ("eve", "not_permitted")


async def test_groups_of_the_userinfo_endpoint_where_the_id_token_has_none(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer, groups_claim="roles", scopes=["roles"])
    issuer.person, issuer.told = {"sub": "ann"}, {"sub": "ann", "roles": "auditors"}
    person = PersonAt(api)
    await person.log_in()
    assert person.sent["scope"] == "openid roles"
    assert (await person.call("GET", "/v1/sessions/current")).json()["role"] == "auditor"
    issuer.told = {"sub": "boss", "roles": "admins"}  # of another person
    answer = await PersonAt(api).log_in()
    assert (answer.status_code, "id_token_refused" in answer.text) == (409, True)


async def test_a_role_reaches_no_token_and_its_session_is_no_key(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    connection = await api.active(await api.integration())
    person = await logged_in(api, issuer, "admins")
    body = {"integration": "crm", "subject": "user-1"}
    paths = ("/v1/lease", f"/v1/connections/{connection.id}/token", f"/v1/connections/{connection.id}/proof")
    for path in paths:
        answer = await person.call("POST", path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        answer = await api.post(path, f"evg_ses_{person.cookie}", body)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    answer = await person.call("POST", "/v1/connections/export", json={"public_key": {}})
    assert answer.status_code == 403
    assert (await person.call("GET", "/v1/connections")).json()["items"][0]["id"] == connection.id
    assert (await api.get("/v1/apps", f"evg_ses_{person.cookie}")).status_code == 401, "a cookie is no bearer"


# --- attacks on the login -----------------------------------------------------------------


async def refused(answer: httpx2.Response, status: int = 400, code: str = "callback_invalid") -> None:
    assert (answer.status_code, code in answer.text) == (status, True), answer.text
    assert "set-cookie" not in answer.headers


async def test_fixation_a_login_takes_no_session_that_was_there_and_makes_a_new_one(
    api: Api, issuer: LoginIssuer
):
    await people_log_in(api, issuer)
    first = await logged_in(api, issuer, "admins")
    planted = first.cookie
    assert planted is not None
    issuer.person = {"sub": "victim", "groups": ["admins"]}
    await first.log_in()
    assert first.cookie != planted
    assert (await first.call("GET", "/v1/sessions/current")).json()["sub"] == "victim"
    old = PersonAt(api)
    old.browser.cookies.set("__Host-evergrant-session", planted, domain="evergrant.test")
    assert (await old.call("GET", "/v1/sessions/current")).status_code == 401, "the earlier session has ended"
    old.browser.cookies.set("__Host-evergrant-session", "A" * 43, domain="evergrant.test")
    assert (await old.call("GET", "/v1/sessions/current")).status_code == 401


async def test_a_callback_in_another_browser_gives_no_session(api: Api, issuer: LoginIssuer):
    """The attacker logs in, and sends the callback's link to a victim; or the other way round."""
    await people_log_in(api, issuer)
    issuer.person = {"sub": "attacker", "groups": ["admins"]}
    attacker, victim = PersonAt(api), PersonAt(api)
    await attacker.leave()
    await victim.leave()
    callback = await attacker.callback()
    await refused(await victim.browser.get(callback))
    await refused(await PersonAt(api).browser.get(callback))
    assert issuer.count("token") == 0
    assert (await attacker.browser.get(callback)).status_code == 303, "its own browser still may"


async def test_a_replayed_callback_and_parallel_ones_give_one_session(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    issuer.person = {"sub": "ann", "groups": ["admins"]}
    person = PersonAt(api)
    await person.leave()
    callback = await person.callback()
    answers = await asyncio.gather(*(person.browser.get(callback) for _ in range(4)))
    assert sorted(it.status_code for it in answers) == [303, 400, 400, 400]
    await refused(await person.browser.get(callback))
    assert issuer.count("token") == 1
    assert len(await api.records(AuditAction.PERSON_LOGGED_IN)) == 1


@pytest.mark.parametrize("bent", [{"state": "x" * 43}, {"iss": "https://evil.example"}, {"iss": None},
                                  {"code": None, "error": "access_denied"}])  # fmt: skip
async def test_a_wrong_state_issuer_or_an_error_ends_without_a_session(
    api: Api, issuer: LoginIssuer, bent: dict[str, str | None]
):
    await people_log_in(api, issuer)
    person = PersonAt(api)
    await person.leave()
    given = {"iss": issuer.issuer, **bent}
    await refused(await person.come_back(**given))
    assert (issuer.count("token"), person.cookie) == (0, None)


async def test_a_login_waits_ten_minutes(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    person = PersonAt(api)
    await person.leave()
    callback = await person.callback()
    api.clock.advance(600)
    await refused(await person.browser.get(callback))
    assert issuer.count("token") == 0


async def test_who_administers_the_issuers_integration_alone_appoints_no_admin(api: Api, issuer: LoginIssuer):
    """By another issuer behind the same name, where the attacker is in every group."""
    boss = await people_log_in(api, issuer)
    started = PersonAt(api)
    await started.leave()
    callback = await started.callback()
    async with LoginIssuer(api.clock.now) as evil:
        async with api.worker.write() as tx:
            row = await tx.integrations.by_name(TENANT, "staff")
            assert row is not None
            await tx.integrations.delete(TENANT, row.id)
        await client_at(api, evil)
        await refused(await PersonAt(api).browser.get("/login"), 424, "client_rejected")
        await refused(await started.browser.get(callback), 424, "client_rejected")
        assert (evil.count("token"), issuer.count("token")) == (0, 0)
        assert (await put_login(api, boss)).json()["issuer"] == evil.issuer


@pytest.mark.parametrize(
    "query",
    [
        "return_to=https://evil.example",
        "next=//evil.example",
        "redirect_uri=https://evil.example",
        "port=80",
        "port=99999",
        "port=8080@evil.example",
        "port=8080",
        "step_up=https://evil.example",
    ],
)
async def test_no_open_redirector(api: Api, issuer: LoginIssuer, query: str):
    await people_log_in(api, issuer)
    answer = await PersonAt(api).browser.get(f"/login?{query}")
    assert "evil.example" not in answer.text
    assert answer.status_code == (400 if "port" in query else 200)
    person = PersonAt(api)
    page = {"csrf": await person.csrf("/login"), **dict([query.split("=")]), "state": "x", "challenge": "y"}
    answer = await person.browser.post("/login", data=page)
    assert "evil.example" not in answer.text


async def test_a_form_of_another_site_begins_no_login(api: Api, issuer: LoginIssuer):
    await people_log_in(api, issuer)
    person = PersonAt(api)
    await person.csrf("/login")
    await refused(await person.browser.post("/login", data={"csrf": "0" * 64}))
    assert (await PersonAt(api).browser.get("/login?tenant=acme-2")).status_code == 404
