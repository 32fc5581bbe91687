"""`POST /oauth/register`: RFC 7591, RFC 8252 sections 7 and 8.4."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest_asyncio

from activities.pruning import Periods, prune_store
from evergrant_server.core.oauth.clients import known_id
from tests.fakes.api import Api
from tests.fakes.assertions import new_key, public_set
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import LOOPBACK, REDIRECT, AgentUser, agents_allowed, registered


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        await agents_allowed(api, issuer)
        yield issuer


async def test_rfc7591_3_2_1_a_client_gets_an_id_and_no_secret(api: Api, issuer: LoginIssuer):
    asked = {
        "client_name": "Coder",
        "redirect_uris": [LOOPBACK],
        "token_endpoint_auth_method": "client_secret_post",
        "grant_types": ["authorization_code", "refresh_token", "implicit"],
        "scope": "read write",
        "logo_uri": "https://evil.example/pixel",
        "application_type": "native",
    }
    made = await api.post("/oauth/register", None, asked)
    said = made.json()
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert (said["token_endpoint_auth_method"], said["scope"], said["redirect_uris"]) == (
        "none",
        "mcp",
        [LOOPBACK],
    )
    assert said["grant_types"] == ["authorization_code", "refresh_token"]
    assert not {"client_secret", "logo_uri", "registration_access_token"} & said.keys()
    auditor, user = await api.app_with("auditor", "audit"), AgentUser(api, issuer)
    assert (await api.get("/v1/oauth-clients", auditor)).json()["items"] == [], "no one has let it in"
    await user.allow(user.url(said["client_id"], None, redirect_uri=LOOPBACK))
    listed = (await api.get("/v1/oauth-clients", auditor)).json()["items"]
    assert [(it["client_id"], it["kind"], it["name"]) for it in listed] == [
        (known_id(said["client_id"]), "registered", "Coder")
    ]


REFUSED_URIS: tuple[Any, ...] = (
    *("http://agent.example/cb", "http://127.0.0.1.evil.example/cb", "http://127.0.0.1@evil.example/cb"),
    *("http://localhost.evil.example/cb", "http://127.1/cb", "https://agent.example/cb#x", "https:///cb"),
    *("https://user:pw@agent.example/cb", "https://agent.example:x/cb", "https://agent.example/c b"),
    *("https://agent.example/cb\\@evil.example", "https://ägent.example/cb", "javascript:alert(1)"),
    *("data:text/html,x", "file:///etc/passwd", "/callback", "", "x" * 3000, 7),
    "cursor://callback",  # a scheme of one word: an admin may register it
)


async def test_rfc8252_a_redirect_uri_that_no_client_may_have(api: Api, issuer: LoginIssuer):
    cases = [({}, uri) for uri in REFUSED_URIS] + [({"application_type": "web"}, LOOPBACK)]
    for more, uri in cases:
        refused = await api.post("/oauth/register", None, {"redirect_uris": [REDIRECT, uri], **more})
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_redirect_uri"), uri


async def test_rfc7591_3_2_2_metadata_that_is_refused(api: Api, issuer: LoginIssuer):
    one, signs = {"redirect_uris": [REDIRECT]}, {"token_endpoint_auth_method": "private_key_jwt"}
    for body in (
        *(
            {"redirect_uris": []},
            {"redirect_uris": [REDIRECT] * 21},
            {"redirect_uris": REDIRECT},
            {},
            [],
            "x",
        ),
        {**one, "application_type": "evil"},
        {**one, "token_endpoint_auth_method": "tls_client_auth"},
        {**one, "token_endpoint_auth_method": ["none"]},
        {**one, **signs},
        {**one, **signs, "jwks": {"keys": []}},
        {**one, "grant_types": ["client_credentials"]},
        {**one, "response_types": ["token"]},
        {**one, "client_name": {"x": 1}},
        {**one, "client_name": "\ud800"},
    ):
        refused = await api.post("/oauth/register", None, body)
        assert (refused.status_code, refused.json()["error"][:8]) == (400, "invalid_"), body


async def test_schemes_and_keys_that_a_client_may_have(api: Api, issuer: LoginIssuer):
    for uri in (
        "com.example.agent:/cb",
        "com.example.agent://cb",
        "http://[::1]/cb",
        "http://localhost:1/cb",
    ):
        assert await registered(api, uri)
    signing = {"token_endpoint_auth_method": "private_key_jwt", "jwks": public_set(new_key())}
    made = (await api.post("/oauth/register", None, {"redirect_uris": [REDIRECT], **signing})).json()
    assert (made["token_endpoint_auth_method"], made["jwks"]["keys"][0]["kty"]) == ("private_key_jwt", "EC")


async def test_a_name_is_shown_without_what_bends_the_page(api: Api, issuer: LoginIssuer):
    """Direction marks, line breaks, heaps of marks, markup, and length."""
    name = "<b>Good\u202e\u2066 one</b>\n\n\u200bAllow" + "a\u0301\u0301\u0301\u0301" + "x" * 500
    client = await registered(api, client_name=name)
    user = AgentUser(api, issuer)
    shown = await user.ask(user.url(client, None))
    assert "<b>" not in shown.text
    assert "&lt;b&gt;Good one&lt;/b&gt; Allow" in shown.text
    assert not set("\u202e\u2066\u200b") & set(shown.text)
    assert "x" * 80 not in shown.text


async def test_a_client_that_was_let_in_outlasts_its_registration_until_it_is_unused_for_half_a_year(
    api: Api, issuer: LoginIssuer
):
    client, user = await registered(api), AgentUser(api, issuer)
    await user.allow(user.url(client, None))
    for days, status in ((179, 303), (2, 400)):
        api.clock.advance(timedelta(days=days).total_seconds())
        await prune_store(api.worker, api.clock, Periods())
        assert (await user.browser.get(user.url(client, None))).status_code == status


async def test_an_admin_registers_lists_turns_off_and_deletes_a_client(api: Api, issuer: LoginIssuer):
    admin = await api.app_with("root", "admin")
    body = {"name": "Cursor", "redirect_uris": ["cursor://anysphere.cursor-mcp/oauth/callback"]}
    made = await api.post("/v1/oauth-clients", admin, body)
    assert (made.status_code, made.json()["kind"]) == (201, "admin")
    refused = await api.post("/v1/oauth-clients", admin, {**body, "redirect_uris": ["javascript:alert(1)"]})
    assert (refused.status_code, refused.json()["field"]) == (400, "redirect_uris")
    client, id = made.json()["client_id"], made.json()["id"]
    user = AgentUser(api, issuer)
    url = user.url(client, None, redirect_uri=body["redirect_uris"][0])
    shown = await user.ask(url)
    assert "registered by your admin" in shown.text
    await user.decide(shown)
    assert user.provider_url.startswith(f"{body['redirect_uris'][0]}?code=")
    path = f"/v1/oauth-clients/{id}"
    assert (await api.call("PUT", path, admin, json={"disabled": True})).json()["disabled"] is True
    assert "turned this program off" in (await user.browser.get(url)).text
    assert (await api.call("PUT", path, admin, json={"disabled": False})).status_code == 200
    asked_again = await user.browser.get(url)  # RFC 8252 8.6: another program may have taken the scheme
    assert (asked_again.status_code, "code=" in asked_again.headers["location"]) == (303, False)
    assert (await api.call("DELETE", path, admin)).status_code == 204
    assert (await api.call("DELETE", path, admin)).status_code == 404
