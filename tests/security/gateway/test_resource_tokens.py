"""Access tokens of clients at the gateway: each is for one resource, and for its subject alone."""

from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT
from tests.fakes.platform.gateway import RawUpstream, answer
from tests.fakes.platform.gateway_clients import AuthorizedClient, authorized_client
from tests.fakes.rows import disable_tenant
from tests.security.gateway.test_mcp import INITIALIZE, JSON, MODERN, Server, server

__all__ = ["server"]

SUBJECT = "user-1"


@pytest_asyncio.fixture
async def agent(server: Server) -> AuthorizedClient:
    return await authorized_client(server.api, "agent")


async def tokens_for(server: Server, agent: AuthorizedClient, subject: str = SUBJECT) -> dict[str, Any]:
    return await agent.tokens(subject, server.connection.id)


async def test_agents_2_a_clients_token_is_not_in_what_goes_upstream_and_the_log_names_its_subject(
    server: Server, agent: AuthorizedClient, upstream: RawUpstream
):
    token = (await tokens_for(server, agent))["access_token"]
    for _ in range(2):  # the second from memory
        assert (await server.post(INITIALIZE, key=token)).status_code == 200
    assert not any(token.encode() in seen.head + seen.body for seen in upstream.seen)
    assert len(upstream.seen) == 2
    *_, called = await server.api.records(AuditAction.PROXY_CALLED)
    assert called.context.by == "app:agent"
    assert (called.detail["client"], called.detail["subject"]) == (agent.client.client_id, SUBJECT)
    assert token not in str(await server.api.records())


async def test_agents_1_a_token_of_another_resource_is_refused_and_nothing_goes_upstream(
    server: Server, agent: AuthorizedClient, upstream: RawUpstream
):
    """Also where the caller of that token is known from a call before."""
    other = await server.api.connection(await server.api.integration("other"), subject=SUBJECT)
    tokens = [await agent.tokens(SUBJECT, other.id), await agent.tokens(SUBJECT)]
    mine = (await tokens_for(server, agent))["access_token"]
    for token in (it["access_token"] for it in tokens):
        refused = await server.post(INITIALIZE, key=token)
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert (await server.post(INITIALIZE, key=mine)).status_code == 200
    upstream.seen.clear()
    elsewhere = [
        await server.gateway.call("POST", f"/mcp/{other.id}", mine, json=INITIALIZE),
        await server.gateway.get(f"/v1/proxy/{server.connection.id}/user", mine),
        await server.api.get(f"/v1/connections/{server.connection.id}", mine),
        await server.api.post("/v1/lease", mine, {"integration": "tools", "subject": SUBJECT}),
    ]
    assert [it.status_code for it in elsewhere] == [401] * 4
    assert upstream.seen == []


async def test_a_token_for_alice_reaches_no_connection_of_bob_whatever_the_apps_permits(
    server: Server, agent: AuthorizedClient, upstream: RawUpstream
):
    token = (await tokens_for(server, agent, "alice"))["access_token"]
    refused = await server.post(INITIALIZE, key=token)
    assert (refused.status_code, refused.headers["evergrant-error"]) == (404, "not_found")
    assert upstream.seen == []


async def test_agents_5_a_clients_session_is_not_its_apps(
    server: Server, agent: AuthorizedClient, upstream: RawUpstream
):
    """Between two callers that act as the same app."""
    token = (await tokens_for(server, agent))["access_token"]
    upstream.responses = [answer(b"{}", "200 OK", "Mcp-Session-Id: theirs")]
    session = (await server.post(INITIALIZE, key=token)).headers["mcp-session-id"]
    headers = JSON | {"Mcp-Session-Id": session}
    assert (await server.post(INITIALIZE, headers)).status_code == 404
    assert (await server.post(INITIALIZE, headers, token)).status_code == 200
    assert upstream.seen[-1].values("mcp-session-id") == ["theirs"]


async def test_rfc9728_5_1_a_401_leads_to_the_resources_metadata(server: Server, agent: AuthorizedClient):
    settings = server.api.parts.settings
    resource = f"{settings.gateway_public_url}{server.path}"
    refused = await server.gateway.client.post(server.path, json=INITIALIZE)
    document = f"{settings.gateway_public_url}/.well-known/oauth-protected-resource{server.path}"
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == f'Bearer resource_metadata="{document}", scope="mcp"'
    found = await server.gateway.client.get(document.removeprefix(settings.gateway_public_url))
    assert found.json() == {
        "resource": resource,
        "authorization_servers": [settings.public_url],
        "scopes_supported": ["mcp"],
        "bearer_methods_supported": ["header"],
    }
    well_known = "/.well-known/oauth-protected-resource"
    assert (await server.gateway.client.get(f"{well_known}/mcp")).json()["resource"].endswith("/mcp")
    for path in ("", "/mcp/", "/mcp/con_x", "/v1/proxy", f"{server.path}/x"):
        assert (await server.gateway.client.get(f"{well_known}{path}")).status_code == 404, path


@pytest.mark.parametrize("gone", ["token", "family", "client", "app", "tenant", "lifetime"])
async def test_what_ends_a_token_ends_its_next_call(
    server: Server, agent: AuthorizedClient, upstream: RawUpstream, gone: str
):
    tokens = await tokens_for(server, agent)
    token = tokens["access_token"]
    assert (await server.post(INITIALIZE, key=token)).status_code == 200  # the gateway remembers the caller
    if gone in ("token", "family"):
        given = token if gone == "token" else tokens["refresh_token"]
        assert (await agent.ask("/oauth/revoke", token=given)).status_code == 200
    elif gone == "lifetime":
        server.api.clock.advance(8 * 3600.0)
    async with server.api.worker.write() as tx:
        if gone == "client":
            client = await tx.oauth_clients.by_client_id(agent.client.client_id)
            assert client is not None
            disabled = client.model_copy(update={"disabled": True})
            await tx.oauth_clients.replace(disabled, expected=client.revision)
            await tx.token_families.judge_again(client.client_id)
        elif gone == "app":
            app = await server.api.app_named("agent")
            await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)
        elif gone == "tenant":
            await disable_tenant(tx, TENANT)
    status = 403 if gone in ("app", "tenant") else 401
    assert (await server.post(INITIALIZE, key=token)).status_code == status
    assert len(upstream.seen) == 1


async def test_keys_of_apps_call_the_same_resource(server: Server, upstream: RawUpstream):
    assert (await server.post(INITIALIZE)).status_code == 200
    (called,) = await server.api.records(AuditAction.PROXY_CALLED)
    assert "client" not in called.detail
    limited = await server.api.app_with("limited", Action.CONNECT)
    assert (await server.post(INITIALIZE, MODERN, limited)).status_code == 403
