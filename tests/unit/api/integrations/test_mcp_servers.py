"""An integration of an MCP server's URL: what `PUT` and a worker make of it, and what its leases demand."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from tests.fakes.api import PUBLIC_URL, TENANT, Api
from tests.fakes.providers.mcp_worker import McpWorker
from tests.fakes.providers.scripted_mcp import ScriptedMcp
from tests.fakes.visitor import Visitor

ROUTE = "/v1/integrations/tools"
CLIENT = {"client_id": "by-hand", "client_secret": "hush-hush"}
INSUFFICIENT = 'Bearer error="insufficient_scope", scope="files:write"'


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedMcp]:
    """It demands the scope `read`, and its issuer reads metadata documents."""
    async with ScriptedMcp(client_id_metadata_document_supported=True) as server:
        server.challenge = 'Bearer scope="read"'
        yield server


@pytest_asyncio.fixture
async def admin(api: Api, server: ScriptedMcp) -> str:
    worker = McpWorker(api, server)

    async def discover(request: DiscoverEndpoints) -> DiscoveryResult:
        async with api.worker.read() as tx:
            found = await tx.integrations.get(request.tenant, request.integration_id)
        assert found is not None
        return await worker.discovered(found)

    api.link.on_job[jobs.DISCOVER_ENDPOINTS.name] = discover
    return await api.app_with("admin", Action.ADMIN)


async def put(api: Api, key: str, server: ScriptedMcp, **more: Any) -> dict[str, Any]:
    body = {"provider": "mcp", "params": {"url": server.mcp}, **more}
    answer = await api.call("PUT", ROUTE, key, json=body)
    return {**answer.json(), "status": answer.status_code}


async def test_the_url_alone_makes_a_client_with_a_document(api: Api, admin: str, server: ScriptedMcp):
    made = await put(api, admin, server)
    assert (made["status"], made["state"], made["registration"]) == (201, "ready", "automatic")
    assert made["client_id"] == f"{PUBLIC_URL}/oauth/client/{made['id']}"
    assert (made["resource"], made["authorization_server"]) == (server.mcp, server.issuer)
    document = (await api.get(made["client_id"].removeprefix(PUBLIC_URL))).json()
    assert document == {
        "client_id": made["client_id"],
        "client_name": "Evergrant",
        "redirect_uris": [made["redirect_uri"]],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "application_type": "web",
        "scope": "read",
    }


async def test_rfc8707_2_a_consent_asks_for_the_resource_and_what_it_demands(
    api: Api, admin: str, server: ScriptedMcp
):
    await put(api, admin, server)
    key = await api.app_with("agent", Action.CONNECT)
    body = {"integration": "tools", "subject": "alice"}
    refused = await api.post("/v1/connections", key, {**body, "resources": ["https://elsewhere.example/"]})
    assert (refused.status_code, refused.json()["field"]) == (400, "resources")
    begun = (await api.post("/v1/connections", key, body)).json()
    visitor = Visitor(api)
    await visitor.go_on(begun["connect_url"])
    assert (visitor.sent["resource"], visitor.sent["scope"]) == (server.mcp, "read")


async def test_the_demanded_scopes_stay_below_the_ceiling(api: Api, admin: str, server: ScriptedMcp):
    server.challenge = 'Bearer scope="read write offline_access"'
    await put(api, admin, server, scope_ceiling=["read"])
    key = await api.app_with("agent", Action.CONNECT)
    begun = await api.post("/v1/connections", key, {"integration": "tools", "subject": "alice"})
    assert begun.json()["requested_scopes"] == ["read"]


async def test_without_a_way_to_register_the_admin_is_told_where(api: Api, admin: str, server: ScriptedMcp):
    server.metadata["client_id_metadata_document_supported"] = False
    refused = await put(api, admin, server)
    assert (refused["status"], refused["code"]) == (424, "client_rejected")
    there = (await api.get(ROUTE, admin)).json()
    assert f"at {server.issuer} with the redirect URI {there['redirect_uri']}" in refused["detail"]
    assert there["problem"] == refused["detail"]
    made = await put(api, admin, server, **CLIENT)
    assert (made["status"], made["state"], made["client_id"]) == (200, "ready", "by-hand")


async def test_an_unused_integration_is_read_again_by_a_put(api: Api, admin: str, server: ScriptedMcp):
    made = await put(api, admin, server, **CLIENT)
    server.challenge = 'Bearer scope="read write"'
    await put(api, admin, server, **CLIENT)
    async with api.worker.read() as tx:
        again = await tx.integrations.by_name(TENANT, "tools")
    assert again is not None
    assert (again.id, again.scopes_by_default) == (made["id"], ("read", "write"))
    await api.active(again)
    seen = len(server.calls)
    assert (await put(api, admin, server, **CLIENT))["state"] == "ready"
    assert len(server.calls) == seen


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"params": {}}, "params.url"),
        ({"params": {"url": "mcp.example"}}, "params.url"),
        ({"params": {"url": "https://mcp.example/mcp?tenant=1"}}, "params.url"),
        ({"params": {"url": "https://user@mcp.example/mcp"}}, "params.url"),
        ({"params": {"url": "https://mcp.example/mcp", "host": "x"}}, "params.host"),
        ({"client_id": "by-hand"}, "client_secret"),
        ({"initial_access_token": "t"}, "initial_access_token"),
    ],
)
async def test_bad_input_is_refused(
    api: Api, admin: str, server: ScriptedMcp, body: dict[str, Any], field: str
):
    refused = await put(api, admin, server, **body)
    assert (refused["status"], refused["field"]) == (400, field), refused
    assert server.calls == []


async def test_a_url_without_its_scheme_is_shown_an_example(api: Api, admin: str, server: ScriptedMcp):
    refused = await put(api, admin, server, params={"url": "mcp.example/mcp"})
    assert "such as https://mcp.example.com/mcp" in refused["detail"]


async def test_an_issuer_that_the_server_doesn_t_name_is_refused(api: Api, admin: str, server: ScriptedMcp):
    refused = await put(api, admin, server, issuer="https://login.example")
    assert (refused["status"], refused["code"]) == (424, "discovery_failed")
    assert f"takes tokens of {server.issuer}, and not of https://login.example" in refused["detail"]


async def test_rfc6750_3_1_a_lease_with_a_403_s_challenge_demands_its_scopes(api: Api):
    connection, key = await api.active_for("agent", Action.TOKEN, Action.CONNECT)
    needed = await api.lease(key, www_authenticate=INSUFFICIENT)
    assert (needed.status_code, needed.json()["scopes"]) == (409, "files:write")
    assert needed.json()["connect_url"]
    for header in ("Bearer", 'Bearer error="invalid_token", scope="files:write"', 'Bearer scope="', "\u20ac"):
        assert (await api.lease(key, www_authenticate=header)).json()["access_token"] == "at-1", header
    by_id = await api.post(f"/v1/connections/{connection.id}/token", key, {"www_authenticate": INSUFFICIENT})
    assert by_id.json()["code"] == "scope_not_granted"
    await api.install(connection, "at-2", scopes=("read_user", "files:write"))
    assert (await api.lease(key, www_authenticate=INSUFFICIENT)).json()["access_token"] == "at-2"


async def test_the_first_lease_with_a_challenge_begins_a_connection_with_its_scopes(api: Api):
    await api.integration()
    key = await api.app_with("agent", Action.TOKEN, Action.CONNECT)
    needed = await api.lease(key, www_authenticate=INSUFFICIENT)
    assert (needed.status_code, needed.json()["code"]) == (409, "consent_required")
    found = (await api.get(f"/v1/connections/{needed.json()['connection_id']}", key)).json()
    assert found["requested_scopes"] == ["files:write"]
