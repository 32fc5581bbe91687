"""`/oauth/authorize` under attack: RFC 6749 section 4.1, RFC 9700 chapter 4, RFC 9207, RFC 7636, RFC 8707."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.oauth.clients import known_id
from tests.fakes.api import PUBLIC_URL, TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import (
    COOKIE,
    LOOPBACK,
    REDIRECT,
    AgentUser,
    agents_allowed,
    code_row,
    csrf_in,
    put_rule,
    registered,
    resource_of,
    sent_back,
)


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


async def test_a_person_allows_a_client_and_it_gets_a_code(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    client = await registered(api)
    user = AgentUser(api, issuer)
    shown = await user.ask(user.url(client, connection))
    for words in ("Coder", "No one has checked its name", "agent.example", "user-1", "crm"):
        assert words in shown.text
    answer = await user.decide(shown)
    back = user.sent
    assert (answer.status_code, user.provider_url.split("?")[0]) == (200, REDIRECT)
    assert (back["state"], back["iss"]) == ("of-the-client", PUBLIC_URL)
    code = await code_row(api, back["code"])
    assert code is not None
    assert (code.tenant, code.client_id, code.subject) == (TENANT, known_id(client), "user-1")
    assert (code.resource, code.connection_id) == (resource_of(api, connection), connection.id)
    assert (code.redirect_uri, code.scopes) == (REDIRECT, ("mcp",))
    assert (code.expires_at - code.created_at).total_seconds() == 60
    (record,) = await api.records(AuditAction.AUTHORIZATION_GIVEN)
    assert (record.object, record.detail["client_id"]) == (code.id, known_id(client))
    assert back["code"] not in record.model_dump_json()
    (login,) = await api.records(AuditAction.SUBJECT_LOGGED_IN)
    assert (login.object, login.detail["issuer"]) == ("user-1", issuer.issuer)


async def test_attack_3_a_new_client_never_passes_without_our_page(api: Api, issuer: LoginIssuer):
    """Not with the session of one that was allowed, nor under its name, nor for another redirect URI."""
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    first = await registered(api, REDIRECT, "https://agent.example/other")
    await user.allow(user.url(first, connection))
    again = await user.browser.get(user.url(first, connection))
    assert "code" in sent_back(again), "one redirect for the client that was allowed"
    evil = await registered(api, "https://evil.example/cb")
    for url in (
        user.url(evil, connection, redirect_uri="https://evil.example/cb"),
        user.url(first, connection, redirect_uri="https://agent.example/other"),
        user.url(first, None),  # for another resource
        user.url(first, connection, prompt="consent"),
    ):
        shown = await user.ask(url)
        assert (shown.status_code, "Allow" in shown.text) == (200, True), shown.text
    asked = await AgentUser(api, issuer).browser.get(user.url(first, connection))
    assert urlsplit(asked.headers["location"]).netloc == urlsplit(issuer.issuer).netloc


async def test_csrf_a_form_of_another_site_or_of_another_request_decides_nothing(
    api: Api, issuer: LoginIssuer
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    one, other = await registered(api), await registered(api)
    csrf = csrf_in(await user.ask(user.url(one, connection)))
    await user.ask(user.url(other, connection))
    for bad in ("", "0" * 64, csrf):
        answer = await user.press(user.page, bad)
        assert (answer.status_code, "callback_invalid" in answer.text) == (400, True)
    assert await api.records(AuditAction.AUTHORIZATION_GIVEN) == []
    shown = await user.browser.get(user.page)
    assert "frame-ancestors 'none'" in shown.headers["content-security-policy"]
    assert (shown.headers["x-frame-options"], shown.headers["cache-control"]) == ("DENY", "no-store")


async def test_another_browser_neither_sees_nor_decides_a_request(api: Api, issuer: LoginIssuer):
    """The attacker sends the page of his own request to a victim; or decides a victim's with his session."""
    connection, _ = await agents_allowed(api, issuer)
    client = await registered(api)
    mallory, alice = AgentUser(api, issuer), AgentUser(api, issuer)
    await mallory.ask(mallory.url(client, connection))
    csrf = csrf_in(await alice.ask(alice.url(client, connection)))
    for answer in (await alice.browser.get(mallory.page), await mallory.press(alice.page, csrf)):
        assert (answer.status_code, "another browser" in answer.text or "not sent" in answer.text) == (
            400,
            True,
        )
    alice.browser.cookies.delete(COOKIE)
    assert (await alice.press(alice.page, csrf)).status_code == 400, "its session has ended"
    assert await api.records(AuditAction.AUTHORIZATION_GIVEN) == []


async def test_a_double_submit_and_a_reload_give_one_code(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    csrf = csrf_in(await user.ask(user.url(await registered(api), connection)))
    answers = await asyncio.gather(*(user.press(user.page, csrf) for _ in range(4)))
    assert sorted(it.status_code for it in answers) == [200, 400, 400, 400]
    assert (await user.press(user.page, csrf, "deny")).status_code == 400
    assert (await user.browser.get(user.page)).status_code == 400
    assert len(await api.records(AuditAction.AUTHORIZATION_GIVEN)) == 1


async def test_a_denied_request_goes_back_as_access_denied(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    client = await registered(api)
    await user.decide(await user.ask(user.url(client, connection)), "deny")
    assert (user.sent["error"], user.sent["state"], user.sent["iss"]) == (
        "access_denied",
        "of-the-client",
        PUBLIC_URL,
    )
    (record,) = await api.records(AuditAction.AUTHORIZATION_DENIED)
    assert record.detail["client_id"] == known_id(client)
    shown = await user.ask(user.url(client, connection))
    await user.decide(shown, "log_out")
    assert user.sent["error"] == "access_denied"
    asked = await user.browser.get(user.url(client, connection))
    assert urlsplit(asked.headers["location"]).netloc == urlsplit(issuer.issuer).netloc


async def test_a_page_waits_ten_minutes(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    csrf = csrf_in(await user.ask(user.url(await registered(api), connection)))
    api.clock.advance(600)
    assert (await user.press(user.page, csrf)).status_code == 400
    assert await api.records(AuditAction.AUTHORIZATION_GIVEN) == []


async def test_open_redirect_an_unproven_redirect_uri_gets_a_page(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user, client = AgentUser(api, issuer), await registered(api)
    own = {
        "client_id": client,
        "redirect_uri": REDIRECT,
        "response_type": "token",
    }  # which would be sent back
    for bent in (
        {"redirect_uri": "https://evil.example/callback"},
        {"redirect_uri": "https://agent.example/callback/"},
        {"redirect_uri": "https://agent.example/callback?next=//evil.example"},
        {"redirect_uri": "https://agent.example/callback#evil"},
        {"redirect_uri": "https://agent.example@evil.example/callback"},
        {"redirect_uri": "//evil.example"},
        {"redirect_uri": "javascript:alert(1)"},
        {"redirect_uri": None},
        {"client_id": "cli_0000000000000000000000"},
        {"client_id": "https://evil.example"},
        {"client_id": None},
    ):
        given: dict[str, str | None] = own | bent
        answer = await user.browser.get(user.url(given.pop("client_id") or "", connection, **given))
        assert (answer.status_code, "client_unknown" in answer.text) == (400, True), bent
        assert ("location" in answer.headers, "evil.example" in answer.text) == (False, False), bent
    for twice in ("client_id=evil", "redirect_uri=https%3A%2F%2Fevil.example", "client_id=%ff", "x=%00"):
        answer = await user.browser.get(f"{user.url(client, connection)}&{twice}")
        assert (answer.status_code, "location" in answer.headers) == (400, False), twice


async def test_errors_of_a_proven_client_go_back_to_it_with_state_and_iss(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user, client = AgentUser(api, issuer), await registered(api, LOOPBACK)
    own = resource_of(api, None)
    for name, value, error in (
        ("response_type", "token", "unsupported_response_type"),
        ("response_type", None, "invalid_request"),
        ("response_mode", "fragment", "invalid_request"),
        ("request", "e30.", "request_not_supported"),
        ("code_challenge", None, "invalid_request"),
        ("code_challenge", "short", "invalid_request"),
        ("code_challenge_method", "plain", "invalid_request"),
        ("code_challenge_method", None, "invalid_request"),
        ("resource", None, "invalid_target"),
        ("resource", "https://evil.example/mcp", "invalid_target"),
        ("resource", f"{own}/", "invalid_target"),
        ("resource", f"{own}/con_0000000000000000000000", "invalid_target"),
    ):
        asked = {"redirect_uri": LOOPBACK, name: value}
        back = sent_back(await user.browser.get(user.url(client, connection, **asked)))
        assert (back["error"], back["state"], back["iss"]) == (error, "of-the-client", PUBLIC_URL), name
    url = user.url(client, connection, redirect_uri=LOOPBACK)
    twice = sent_back(await user.browser.get(f"{url}&resource={own}&state=2"))
    assert (twice["error"], "state" in twice) == ("invalid_target", False)
    assert issuer.count("authorize") == 0


async def test_code_injection_state_and_redirect_query_stay_the_clients(api: Api, issuer: LoginIssuer):
    """Nothing of the request gets into the answer as a parameter of ours."""
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    own = "https://agent.example/cb?tab=1"
    client = await registered(api, own)
    state = "x&code=stolen&iss=https://evil.example\r\nX-Evil: 1"
    back = await user.allow(user.url(client, connection, redirect_uri=own, state=state))
    assert (back["state"], back["iss"], back["tab"]) == (state, PUBLIC_URL, "1")
    assert user.provider_url.count("code=") == 1
    assert await code_row(api, back["code"]) is not None


async def test_rfc_8252_7_3_any_port_of_a_loopback_address(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    client = await registered(api, LOOPBACK)
    shown = await user.ask(user.url(client, connection, redirect_uri="http://127.0.0.1:50123/callback"))
    assert "a program on this computer" in shown.text
    await user.decide(shown)
    assert user.provider_url.startswith("http://127.0.0.1:50123/callback?code=")
    for other in ("http://127.0.0.1:50123/other", "http://localhost:50123/callback", "http://127.0.0.1:0/callback",
                  "http://127.0.0.1:99999/callback", "http://127.0.0.1:1@evil.example/callback"):  # fmt: skip
        answer = await user.browser.get(user.url(client, connection, redirect_uri=other))
        assert (answer.status_code, "location" in answer.headers) == (400, False), other


async def test_attack_4_another_person_gets_no_code_and_may_log_in_as_the_right_one(
    api: Api, issuer: LoginIssuer
):
    connection, _ = await agents_allowed(api, issuer)
    client = await registered(api)
    bob = AgentUser(api, issuer)
    back = sent_back(await bob.ask(bob.url(client, connection), "bob"))
    assert (back["error"], "code" in back) == ("access_denied", False)
    api.clock.advance(120)
    asked = await bob.browser.get(bob.url(client, connection))
    assert "prompt=login" in asked.headers["location"]
    assert (await bob.allow(bob.url(client, connection), "user-1"))["code"]


async def test_who_uses_clients_has_no_session_of_an_admin(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    await user.ask(user.url(await registered(api), connection))
    cookie = user.browser.cookies.get(COOKIE)
    assert cookie is not None
    user.browser.cookies.set("__Host-evergrant-session", cookie, domain="evergrant.test")
    assert (await user.browser.get("/v1/sessions/current")).status_code == 401
    assert (await api.get("/v1/sessions/current", f"evg_ses_{cookie}")).status_code == 401


async def test_without_a_designated_app_the_refusal_says_what_an_admin_does(api: Api, issuer: LoginIssuer):
    connection, admin = await agents_allowed(api, issuer)
    client = await registered(api, LOOPBACK)
    user = AgentUser(api, issuer)
    await user.allow(user.url(client, connection, redirect_uri=LOOPBACK))
    assert (await api.call("DELETE", "/v1/client-login", admin)).status_code == 204
    back = sent_back(await user.browser.get(user.url(client, connection, redirect_uri=LOOPBACK)))
    assert (back["error"], "evergrant clients login" in back["error_description"]) == (
        "unauthorized_client",
        True,
    )
    refused = await api.post("/oauth/register", None, {"redirect_uris": [REDIRECT]})
    assert (refused.status_code, "evergrant clients login" in refused.text) == (400, True)
    await put_rule(api, admin, registration=False)
    back = sent_back(await user.browser.get(user.url(client, connection, redirect_uri=LOOPBACK)))
    assert (back["error"], "turned off" in back["error_description"]) == ("unauthorized_client", True)
    assert (await api.post("/oauth/register", None, {"redirect_uris": [REDIRECT]})).status_code == 400


async def test_a_change_of_the_rule_ends_sessions_consents_and_open_pages(api: Api, issuer: LoginIssuer):
    connection, admin = await agents_allowed(api, issuer)
    client = await registered(api)
    user = AgentUser(api, issuer)
    await user.allow(user.url(client, connection))
    csrf = csrf_in(await user.ask(user.url(client, None)))
    await put_rule(api, admin, documents=False)
    refused: httpx2.Response = await user.press(user.page, csrf)
    assert (refused.status_code, "clients_off" in refused.text) == (403, True)
    shown = await user.ask(user.url(client, connection))
    assert (issuer.count("token"), "Allow" in shown.text) == (2, True), "another login, and our page"
