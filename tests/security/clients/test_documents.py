"""Clients whose id is the URL of a metadata document (draft-ietf-oauth-client-id-metadata-document)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import ReadClientDocument
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import LOOPBACK, REDIRECT, AgentUser, agents_allowed, put_rule, sent_back
from tests.security.clients.document_host import DocumentHost, document_host

INSIDE = [
    *("https://127.1/c", "https://169.254.169.254/c", "https://[::ffff:10.0.0.1]/c", "https://0x7f000001/c"),
    *("https://localhost/c", "https://2130706433/c", "https://[::1]/c", "https://agent.example:22/c"),
]


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


@pytest_asyncio.fixture
async def host(api: Api, tmp_path: Path) -> AsyncIterator[DocumentHost]:
    async with document_host(api, tmp_path) as host:
        yield host


async def refused(user: AgentUser, url: str, *words: str, status: int = 400) -> None:
    answer = await user.ask(url)
    assert (answer.status_code, "location" in answer.headers) == (status, False), answer.text
    for it in words:
        assert it in answer.text, answer.text


async def test_a_document_is_read_after_the_login_and_kept_as_its_headers_say(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    url = user.url(host.url, connection)
    left = await user.browser.get(url)
    assert (left.status_code, host.asked) == (303, []), "a stranger has nothing fetched"
    host.headers = "cache-control: public, max-age=3600\r\n"
    shown = await user.ask(url)
    for words in ("Coder", f"of 127.0.0.1:{host.port}", "agent.example"):
        assert words in shown.text
    assert host.asked == ["/agent.json None"]
    await user.decide(shown)
    assert user.provider_url.startswith(f"{REDIRECT}?code=")
    assert "code" in sent_back(await user.browser.get(url)), "an https redirect proves it: one redirect"
    assert len(host.asked) == 1
    api.clock.advance(3601)
    host.document["client_name"] = "Coder 2"
    shown = await user.ask(user.url(host.url, None))
    assert ("Coder 2" in shown.text, len(host.asked)) == (True, 2)


async def test_a_person_is_asked_again_about_a_document_that_an_admin_deleted(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    connection, admin = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    url = user.url(host.url, connection)
    await user.allow(url)
    (listed,) = (await api.get("/v1/oauth-clients", admin)).json()["items"]
    assert (await api.call("DELETE", f"/v1/oauth-clients/{listed['id']}", admin)).status_code == 204
    shown = await user.ask(url)
    assert (shown.status_code, "Allow" in shown.text) == (200, True)


async def test_documents_that_were_never_let_in_give_way_to_new_ones(
    api: Api, host: DocumentHost, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("activities.oauth.MOST_UNUSED", 3)
    for number in range(5):
        url = f"{host.url}?{number}"
        host.document |= {"client_id": url}
        order = ReadClientDocument(tenant=TENANT, client_id=url, context=RequestContext(by="subject"))
        assert (await host.worker.read_document(order)).failure is None
        api.clock.advance(1)
    async with api.store.read() as tx:
        kept = await tx.oauth_clients.page(TENANT, None, 9)
    assert {it.client_id[-1] for it in kept} == {"2", "3", "4"}


async def test_rfc8252_8_6_the_public_id_of_a_program_on_this_computer_is_asked_about_each_time(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    connection, _ = await agents_allowed(api, issuer)
    host.document["redirect_uris"] = [LOOPBACK]
    user = AgentUser(api, issuer)
    url = user.url(host.url, connection, redirect_uri=LOOPBACK)
    await user.allow(url)
    shown = await user.ask(url)
    assert (shown.status_code, "Allow" in shown.text) == (200, True)


async def test_a_document_that_cannot_be_used_is_a_page(api: Api, issuer: LoginIssuer, host: DocumentHost):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    good = dict(host.document)
    for bent, words in (
        ({"client_id": "https://127.0.0.1/agent.json"}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"client_secret": "x"}, "client_secret"),
        ({"redirect_uris": ["https://other.example/cb"]}, "its own"),
        ({"redirect_uris": []}, "redirect_uris"),
        ({"redirect_uris": ["javascript:alert(1)"]}, "scheme"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "jwks"),
    ):
        host.document = good | bent
        api.clock.advance(3601)
        await refused(user, user.url(host.url, connection), "client_unknown", words)
    host.document, asked = good, len(host.asked)
    for status, headers, body in (
        (302, "location: https://evil.example/c\r\n", b""),
        (404, "", b""),
        (200, "", b"<html>"),
        (200, "", b"[]"),
        (200, "", b'{"client_id": 1, "client_id": 2}'),
        (200, "", b"{" + b" " * 20_000 + b"}"),
        (200, "", b"x" * 2_000_000),
    ):
        host.status, host.headers, host.body = status, headers, body
        await refused(user, user.url(host.url, connection), "client_unknown")
    assert len(host.asked) == asked + 7


async def test_attack_8_a_document_inside_is_refused_without_a_connect(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    for url in INSIDE:
        order = ReadClientDocument(tenant=TENANT, client_id=url, context=RequestContext(by="subject"))
        assert (await host.worker.read_document(order)).failure is ErrorCode.EGRESS_REFUSED
        await refused(user, user.url(url, connection), "client_unknown")
    assert host.asked == []


async def test_what_is_no_client_id_of_a_document_is_an_unknown_client(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    for url in (
        *(
            "http://agent.example/c",
            "https://agent.example",
            "https://agent.example/",
            "https://u@agent.example/c",
        ),
        *("https://agent.example/c#x", "https://agent.example/a/../c", "https://agent.example/%2e%2e/c"),
        "https://agent.example/c d",
    ):
        await refused(user, user.url(url, connection), "client_unknown")
    assert (host.asked, issuer.count("authorize")) == ([], 0)


async def test_documents_can_be_turned_off(api: Api, issuer: LoginIssuer, host: DocumentHost):
    connection, admin = await agents_allowed(api, issuer)
    await put_rule(api, admin, documents=False)
    user = AgentUser(api, issuer)
    await refused(user, user.url(host.url, connection), "clients_off", "turned off", status=403)
    assert host.asked == []


async def test_mixed_up_client_a_code_is_of_the_client_and_resource_that_asked(
    api: Api, issuer: LoginIssuer, host: DocumentHost
):
    """Another client with the same redirect URI gets nothing of the first one's consent."""
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    await user.allow(user.url(host.url, connection))
    made = await api.post("/oauth/register", None, {"redirect_uris": [REDIRECT], "client_name": "Coder"})
    shown = await user.ask(user.url(made.json()["client_id"], connection))
    assert "No one has checked its name" in shown.text
