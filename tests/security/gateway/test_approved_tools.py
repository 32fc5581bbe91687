"""Calls of an MCP server's tools that a person approves, with all of their params and headers."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.gateway.proxy import provider_api
from tests.fakes.platform.gateway import RawUpstream, Seen, answer
from tests.security.gateway.test_mcp import JSON, MODERN, Server, permit_is, problem_of, server

__all__ = ["server"]

PARAMS = {
    "name": "pay",
    "arguments": {"sum": 5},
    "_meta": {"account": "acme", "progressToken": 1},
    "task": {"ttl": 60_000},
}
REGION = {"Mcp-Param-Sum": "5"}
WANTED = {
    "tool": "pay",
    "arguments": {"sum": 5.0},
    "params": {"_meta": {"account": "acme"}, "task": {"ttl": 60_000}},
    "headers": [{"name": "Mcp-Param-Sum", "value": "5"}],
}


def calling(params: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **beside}


async def approved(server: Server, wanted: dict[str, Any] = WANTED) -> dict[str, Any]:
    """What the admin has seen and approved."""
    admin = await permit_is(server, call_approval=True)
    body = {"connection_id": server.connection.id, "reason": "order 7", **wanted}
    asked = await server.api.post("/v1/call-approvals", server.key, body)
    assert asked.status_code == 202, asked.text
    shown = (await server.api.post(f"/v1/call-approvals/{asked.json()['id']}/approve", admin)).json()
    assert shown["state"] == "approved"
    return {name: value for name, value in shown["call"].items() if value is not None}


async def test_what_is_shown_is_the_whole_call_with_its_server(server: Server, upstream: RawUpstream):
    shown = await approved(server)
    assert shown == {
        "url": f"{upstream.url}/v2/mcp",
        "tool": "pay",
        "arguments": {"sum": 5.0},
        "params": WANTED["params"],
        "headers": [{"name": "mcp-param-sum", "value": "5"}],
    }
    made = await server.post(calling(PARAMS), MODERN | REGION)
    assert made.status_code == 200
    assert json.loads(upstream.seen[0].body)["params"] == PARAMS
    assert problem_of(await server.post(calling(PARAMS), MODERN | REGION))[2] == "call_approval_required"


@pytest.mark.parametrize(
    "changed",
    [
        {"arguments": {"sum": 6, "was": 5}},
        {"arguments": {"sum": 5, "to": "bob"}},
        {"_meta": {"account": "other"}},
        {"_meta": {"account": "acme", "io.modelcontextprotocol/related-task": {"taskId": "1"}}},
        {"_meta": {}},
        {"_meta": ["account"]},
        {"task": {"ttl": 1}},
        {"task": None},
        {"further": True},
    ],
)
async def test_any_other_param_is_another_call(
    server: Server, upstream: RawUpstream, changed: dict[str, Any]
):
    await approved(server)
    made = await server.post(calling(PARAMS | changed), MODERN | REGION)
    assert problem_of(made)[2] == "call_approval_required"
    assert upstream.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Mcp-Param-Sum": "=?base64?NQ==?="},
        {**REGION, "Mcp-Param-Other": "5"},
        {**REGION, "X-Goog-User-Project": "theirs"},
        {**REGION, "Accept": "application/json; version=2"},
    ],
)
async def test_any_other_header_that_goes_on_is_another_call(
    server: Server, upstream: RawUpstream, headers: dict[str, str]
):
    await approved(server)
    made = await server.post(calling(PARAMS), MODERN | headers)
    assert problem_of(made)[2] == "call_approval_required"
    assert upstream.seen == []


async def test_the_servers_query_and_members_beside_params_are_another_call(
    server: Server, upstream: RawUpstream
):
    await approved(server)
    beside = await server.post(calling(PARAMS, account="theirs"), MODERN | REGION)
    assert problem_of(beside)[2] == "call_approval_required"
    content = json.dumps(calling(PARAMS)).encode()
    where = f"{server.path}?account=theirs"
    queried = await server.gateway.call("POST", where, server.key, content=content, headers=MODERN | REGION)
    assert problem_of(queried)[2] == "call_approval_required"
    assert upstream.seen == []


async def test_a_call_in_any_session_and_frame_is_the_same_call(server: Server, upstream: RawUpstream):
    upstream.responses = [answer(b"{}", "200 OK", "Mcp-Session-Id: theirs-1")]
    started = await server.post(calling({}) | {"method": "initialize"})
    await approved(server)
    headers = JSON | REGION | {"Mcp-Session-Id": started.headers["mcp-session-id"], "User-Agent": "x"}
    headers |= {"MCP-Protocol-Version": "2025-11-25", "Accept": "text/event-stream, application/json"}
    meta = {"account": "acme", "progressToken": "other", "io.modelcontextprotocol/clientInfo": {"name": "x"}}
    assert (await server.post(calling(PARAMS | {"_meta": meta}), headers)).status_code == 200


async def test_another_message_is_approved_by_its_bytes(server: Server, upstream: RawUpstream):
    """So is a call of a tool that has more than its params."""
    admin = await permit_is(server, call_approval=True)
    for message in (
        calling({"uri": "file:///x"}) | {"method": "resources/read"},
        calling(PARAMS, account="theirs"),
    ):
        content = json.dumps(message)
        headers = [{"name": name, "value": value} for name, value in MODERN.items()]
        wanted = {"method": "POST", "url": f"{upstream.url}/v2/mcp", "body": content, "headers": headers}
        body = {"connection_id": server.connection.id, "reason": "order 7", **wanted}
        asked = (await server.api.post("/v1/call-approvals", server.key, body)).json()
        await server.api.post(f"/v1/call-approvals/{asked['id']}/approve", admin)
        other = json.dumps(message | {"id": 2}).encode()
        assert problem_of(await server.post(other, MODERN))[2] == "call_approval_required"
        assert (await server.post(content.encode(), MODERN)).status_code == 200
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_a_stock_client_makes_a_call_that_was_asked_for_by_tool_and_arguments(
    server: Server, upstream: RawUpstream, era: str
):
    """What the MCP SDK adds by itself, in headers and `_meta`, is neutral."""
    await approved(server, {"tool": "pay", "arguments": {"sum": 5}})
    calls: list[Any] = []

    async def serve(seen: Seen, writer: asyncio.StreamWriter) -> None:
        message = json.loads(seen.body or b"{}")
        calls.append(message.get("method"))
        result = {
            "initialize": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "theirs", "version": "1"},
            },
            "server/discover": {
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "theirs", "version": "1"},
                "resultType": "complete",
                "ttlMs": 0,
                "cacheScope": "private",
            },
            "tools/list": {
                "tools": [{"name": "pay", "inputSchema": {"type": "object"}}],
                "resultType": "complete",
                "ttlMs": 0,
                "cacheScope": "private",
            },
            "tools/call": {"content": [], "resultType": "complete"},
        }.get(message.get("method"), {})
        body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
        writer.write(answer(body, "200 OK", "Content-Type: application/json"))

    upstream.handler = serve
    async with httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {server.key}"}, timeout=60, trust_env=False
    ) as http:
        url = f"http://127.0.0.1:{server.gateway.port}{server.path}"
        async with Client(streamable_http_client(url, http_client=http), mode=era) as client:
            made = await client.call_tool("pay", {"sum": 5})
    assert not made.is_error
    assert calls.count("tools/call") == 1


async def test_a_renewal_that_moves_the_server_is_asked_about_again(
    server: Server, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    await approved(server)
    server.api.refreshes_with("at-2")
    refresh = server.api.link.on_refresh
    assert refresh is not None

    async def refresh_and_move(tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        await moved(server, server.connection, f"{upstream.url}/v3/mcp")
        monkeypatch.setattr(provider_api, "KEPT_S", 0.0)
        return await refresh(tenant, id, ask)

    server.api.link.on_refresh = refresh_and_move
    upstream.responses = [answer(b"", "401 Unauthorized")]
    made = await server.post(calling(PARAMS), MODERN | REGION)
    assert problem_of(made)[2] == "call_approval_required"
    assert [it.target for it in upstream.seen] == ["/v2/mcp"]


async def moved(server: Server, connection: Connection, url: str) -> None:
    async with server.api.worker.write() as tx:
        integration = await tx.integrations.by_name(connection.tenant, "tools")
        assert integration is not None
        changed = integration.model_copy(update={"params": {"url": url}})
        await tx.integrations.put(changed, None, expected=integration.revision)
