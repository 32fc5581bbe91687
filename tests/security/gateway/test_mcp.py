"""A remote MCP server behind the gateway: its bytes pass, its sessions and challenges stay here."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.gateway.proxy.caller_body import KEPT
from tests.fakes.api import Api
from tests.fakes.platform.gateway import OK, Gateway, RawUpstream, Seen, answer
from tests.security.gateway.test_responses import SSE, TOKEN, chunk

JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
MODERN = JSON | {"MCP-Protocol-Version": "2026-07-28"}
DANGER = {"jsonrpc": "2.0", "id": "r1", "method": "tools/call", "params": {"name": "danger", "arguments": {}}}
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}


class Server:
    """An MCP server that a connection is for, and an app that may call it."""

    def __init__(self, api: Api, gateway: Gateway, connection: Connection, key: str) -> None:
        self.api, self.gateway, self.connection, self.key = api, gateway, connection, key
        self.path = f"/mcp/{connection.id}"

    async def post(self, message: Any, headers: Any = JSON, key: str = "") -> httpx2.Response:
        content = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.gateway.call("POST", self.path, key or self.key, content=content, headers=headers)


@pytest_asyncio.fixture
async def server(api: Api, gateway: Gateway, upstream: RawUpstream) -> AsyncIterator[Server]:
    integration = await api.integration("tools", provider="mcp", params={"url": f"{upstream.url}/v2/mcp"})
    connection = await api.active(integration, TOKEN)
    key = await api.app_with("agent", Action.PROXY)
    await api.made_by(connection, "agent")
    yield Server(api, gateway, connection, key)


def problem_of(response: httpx2.Response) -> tuple[int, int, str]:
    """Status, and the JSON-RPC error with its problem document's code."""
    error = response.json()["error"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["evergrant-error"] == error["data"]["code"]
    return response.status_code, error["code"], error["data"]["code"]


async def test_a_message_passes_byte_for_byte_and_is_recorded(server: Server, upstream: RawUpstream):
    body = b'{ "jsonrpc":"2.0","id":1, "method":"tools/call","params":{"name":"add","arguments":{"a":1e2}} }'
    upstream.responses = [answer(b'{"jsonrpc": "2.0"}', "200 OK", "Content-Type: application/json")]
    headers = MODERN | {"Mcp-Method": "tools/call", "Mcp-Name": "add", "X-Own": "1"}
    made = await server.post(body, headers)
    assert (made.status_code, made.content) == (200, b'{"jsonrpc": "2.0"}')
    (seen,) = upstream.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/v2/mcp", body)
    assert seen.values("authorization") == [f"Bearer {TOKEN}"]
    assert (seen.values("mcp-name"), seen.values("x-own"), seen.values("origin")) == (["add"], ["1"], [])
    (record,) = await server.api.records(AuditAction.PROXY_CALLED)
    assert record.detail["request"] == "POST /mcp tools/call add"


async def test_the_servers_own_refusals_pass_and_its_401_does_not(server: Server, upstream: RawUpstream):
    """A client of both eras falls back by what a 400 says, so that arrives as it was sent."""
    refused = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"no","data":{"supported":[]}}}'
    challenge = 'WWW-Authenticate: Bearer resource_metadata="https://theirs.test/x"'
    expired = answer(b"expired", "401 Unauthorized", challenge)
    server.api.refreshes_with("at-2")
    upstream.responses = [answer(refused, "400 Bad Request", "Content-Type: application/json"), expired, OK]
    made = await server.post(INITIALIZE)
    assert (made.status_code, made.content) == (400, refused)
    assert (await server.post(INITIALIZE)).status_code == 200
    assert upstream.seen[2].values("authorization") == ["Bearer at-2"]
    assert upstream.seen[1].body == upstream.seen[2].body
    server.api.refreshes_with("at-3")
    upstream.responses = [expired, expired]
    again = await server.post(INITIALIZE, MODERN)
    assert problem_of(again) == (409, -32600, "token_refused")
    assert "www-authenticate" not in again.headers
    assert len(server.api.link.asked) == 2, "one refresh a generation"


@pytest.mark.parametrize("binding", ["none", "oidc"])
async def test_a_403_that_wants_scopes_is_a_typed_step_up(
    server: Server, upstream: RawUpstream, binding: str
):
    """With a link where only a login opens it, as clients of each era take it."""
    login = LoginRule(integration="staff") if binding == "oidc" else None
    async with server.api.worker.write() as tx:
        integration = await tx.integrations.by_name(server.connection.tenant, "tools")
        assert integration is not None
        changed = integration.model_copy(update={"binding": Binding(binding), "login": login})
        await tx.integrations.put(changed, None, expected=integration.revision)
    await permit_is(server, actions=["proxy", "connect"])
    challenge = 'WWW-Authenticate: Bearer error="insufficient_scope", scope="files:write"'
    forbidden = answer(b"no", "403 Forbidden", challenge)
    upstream.responses = [forbidden, forbidden]
    modern, older = await server.post(DANGER, MODERN), await server.post(DANGER)
    linked = binding == "oidc"
    assert problem_of(modern) == (403, -32600, "scope_not_granted")
    assert problem_of(older) == (200, -32042 if linked else -32600, "scope_not_granted")
    for made in (modern, older):
        error = made.json()["error"]
        assert made.json()["id"] == "r1"
        assert "www-authenticate" not in made.headers
        assert (error["data"]["scopes"], error["data"]["connection_id"]) == (
            "files:write",
            server.connection.id,
        )
        assert ("connect_url" in error["data"]) == linked
    if linked:
        (asked,) = older.json()["error"]["data"]["elicitations"]
        assert (asked["mode"], asked["url"]) == ("url", modern.json()["error"]["data"]["connect_url"])
        assert asked["url"] in modern.json()["error"]["message"]


async def test_a_403_for_scopes_that_the_connection_has_is_the_servers_answer(
    server: Server, upstream: RawUpstream
):
    await permit_is(server, actions=["proxy", "connect"])
    challenge = 'WWW-Authenticate: Bearer error="insufficient_scope", scope="read_user"'
    upstream.responses = [answer(b"not yours", "403 Forbidden", challenge)]
    made = await server.post(DANGER, MODERN)
    assert (made.status_code, made.text) == (403, "not yours")


# --- sessions ---------------------------------------------------------------------------


async def test_agents_5_a_session_is_of_its_connection_and_caller_alone(
    server: Server, upstream: RawUpstream
):
    """Another principal's session id, or an altered one, is a 404; nothing goes upstream."""
    upstream.responses = [answer(b"{}", "200 OK", "Mcp-Session-Id: theirs-1")]
    ours = (await server.post(INITIALIZE)).headers["mcp-session-id"]
    assert "theirs" not in ours
    in_session = JSON | {"MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": ours}
    for method in ("POST", "GET", "DELETE"):
        headers = in_session | ({"Last-Event-ID": "7"} if method == "GET" else {})
        made = await server.gateway.call(method, server.path, server.key, headers=headers)
        assert made.status_code == 200
        assert upstream.seen[-1].values("mcp-session-id") == ["theirs-1"]
    assert upstream.seen[2].values("last-event-id") == ["7"]
    count = len(upstream.seen)
    altered = ours[:-6] + ("A" if ours[-6] != "A" else "B") + ours[-5:]
    other = await server.api.app_with("other", Action.PROXY)
    second = await server.api.active(await _integration(server, "second"), "at-9")
    for path, key, session in (
        (server.path, server.key, altered),
        (server.path, server.key, "theirs-1"),
        (server.path, server.key, ours * 40),
        (server.path, other, ours),
        (f"/mcp/{second.id}", server.key, ours),
    ):
        headers = in_session | {"Mcp-Session-Id": session}
        refused = await server.gateway.call("POST", path, key, content=b"{}", headers=headers)
        assert problem_of(refused)[::2] == (404, "not_found")
    assert len(upstream.seen) == count
    assert (await server.post(DANGER, MODERN | {"Mcp-Session-Id": "any"})).status_code == 200
    assert upstream.seen[-1].values("mcp-session-id") == [], "the revision 2026-07-28 has no sessions"


async def _integration(server: Server, name: str) -> Any:
    return await server.api.integration(name, provider="mcp", params={"url": "http://127.0.0.1:1/mcp"})


# --- who may send what ------------------------------------------------------------------


async def test_only_an_mcp_servers_connection_is_served_and_only_with_its_permit(
    server: Server, upstream: RawUpstream
):
    other = await server.api.active(await server.api.integration("crm"))
    leases = await server.api.app_with("leases", Action.TOKEN)

    async def code(path: str, key: str = server.key, method: str = "POST") -> tuple[int, int, str]:
        return problem_of(await server.gateway.call(method, path, key, content=b"{}", headers=JSON))

    assert (await code(f"/mcp/{other.id}"))[::2] == (424, "api_unknown")
    assert (await code(server.path, leases))[::2] == (403, "not_permitted")
    assert (await code(server.path, "evg_key_wrong"))[::2] == (401, "unauthenticated")
    assert (await code(f"{server.path}/x"))[::2] == (404, "not_found")
    assert (await code(server.path, method="PUT"))[::2] == (405, "method_not_allowed")
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.test"}, 400),
        ({"Host": "localhost:1"}, 200),
        ({"Origin": "http://127.0.0.1:8483"}, 200),
    ],
)
async def test_pages_of_other_origins_and_names_of_others_are_refused(
    server: Server, upstream: RawUpstream, headers: dict[str, str], status: int
):
    assert (await server.post(INITIALIZE, JSON | headers)).status_code == status
    assert len(upstream.seen) == (status == 200)


async def test_agents_23_a_permit_judges_the_tool_that_the_body_calls(server: Server, upstream: RawUpstream):
    """Headers that name another tool than the body, twice, or a batch, are refused."""
    await permit_is(server, tools=["safe", "search_*"])

    def calls(tool: str) -> dict[str, Any]:
        return DANGER | {"params": {"name": tool}}

    for message, headers in (
        (INITIALIZE, JSON),
        (calls("search_mail"), JSON),
        (calls("safe"), MODERN | {"Mcp-Method": "tools/call", "Mcp-Name": "=?base64?c2FmZQ==?="}),
        ({"jsonrpc": "2.0", "id": 3, "result": {}}, JSON),
    ):
        assert (await server.post(message, headers)).status_code == 200
    assert (await server.gateway.call("GET", server.path, server.key)).status_code == 200
    count = len(upstream.seen)
    for message in (DANGER, calls("Safe"), DANGER | {"method": "resources/read", "params": {"uri": "x"}}):
        assert (await server.post(message, MODERN)).status_code == 403
        refused = await server.post(message)
        assert problem_of(refused) == (200, -32600, "not_permitted"), (
            "an error ends no older client's session"
        )
        assert refused.json()["error"]["data"]["permit"] == "only"
    twice = [*MODERN.items(), ("Mcp-Name", "safe"), ("Mcp-Name", "danger")]
    for body, headers, code in (
        (DANGER, MODERN | {"Mcp-Name": "safe"}, -32020),
        (DANGER, MODERN | {"Mcp-Method": "tools/list"}, -32020),
        (DANGER, twice, -32020),
        ([calls("safe"), DANGER], JSON, -32600),
        (b'{"method":"ping","Method":"tools/call","params":{"name":"danger"}}', JSON, -32600),
        (b'{"id":1,"method":"tools/call","params":{"name":"safe","name":"danger"}}', JSON, -32600),
        (json.dumps(calls("safe") | {"x": "x" * KEPT}).encode(), JSON, -32600),
    ):
        assert problem_of(await server.post(body, headers)) == (400, code, "invalid_request")
    assert len(upstream.seen) == count


async def permit_is(server: Server, **fields: Any) -> str:
    """Change the agent's permit; the key of the admin who has done so."""
    admin = await server.api.app_with("admin", Action.ADMIN)
    permit = {"integration": "*", "actions": ["proxy"], **fields}
    put = await server.api.call("PUT", "/v1/apps/agent/permits/only", admin, json=permit)
    assert put.status_code == 200, put.text
    return admin


async def test_an_approval_is_for_one_tool_with_its_arguments(server: Server, upstream: RawUpstream):
    admin = await permit_is(server, call_approval=True)
    assert (await server.post(INITIALIZE)).status_code == 200, "what calls no tool needs no approval"
    assert problem_of(await server.post(DANGER, MODERN))[::2] == (403, "call_approval_required")
    wanted = {"connection_id": server.connection.id, "tool": "danger", "arguments": {}, "reason": "order 7"}
    asked = (await server.api.post("/v1/call-approvals", server.key, wanted)).json()
    await server.api.post(f"/v1/call-approvals/{asked['id']}/approve", admin)
    with_arguments = DANGER | {"params": {"name": "danger", "arguments": {"sum": 5}}}
    assert problem_of(await server.post(with_arguments))[2] == "call_approval_required"
    assert problem_of(await server.post(DANGER, MODERN | {"Mcp-Name": "safe"}))[2] == "invalid_request"
    assert len(upstream.seen) == 1
    assert (await server.post(DANGER, MODERN | {"Mcp-Name": "danger"})).status_code == 200
    assert problem_of(await server.post(DANGER))[2] == "call_approval_required"
    assert len(upstream.seen) == 2


# --- a hostile server -------------------------------------------------------------------


async def test_agents_20_an_echo_across_two_events_never_arrives(server: Server, upstream: RawUpstream):
    """In a stream that a caller keeps open."""
    first, second = TOKEN[:11], TOKEN[11:]

    async def echoing(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE + chunk(f"data: {first}".encode()))
        await writer.drain()
        writer.write(chunk(f"{second}\n\n".encode()) + b"0\r\n\r\n")

    upstream.handler = echoing
    made = await server.post(DANGER)
    assert made.text == f"data: {'*' * len(TOKEN)}\n\n"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 503, "provider_unreachable"),
        (answer(b"", "200 OK", "Mcp-Session-Id: with space"), 424, "reply_unreadable"),
        (answer(b"", "200 OK", f"Mcp-Session-Id: {'x' * 2000}"), 424, "reply_unreadable"),
        (b"no HTTP at all\r\n\r\n", 503, "provider_unreachable"),
    ],
)
async def test_agents_22_a_hostile_answer_costs_its_own_call_alone(
    server: Server, upstream: RawUpstream, sent: bytes, status: int, code: str
):
    upstream.responses = [sent]
    refused = await server.post(INITIALIZE, MODERN)
    assert problem_of(refused)[::2] == (status, code)
    assert (await server.post(INITIALIZE)).status_code == 200


async def test_agents_22_an_endless_stream_holds_up_no_other_call(server: Server, upstream: RawUpstream):
    left = asyncio.Event()

    async def endless(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.method == "POST":
            writer.write(OK)
            return
        writer.write(SSE)
        try:
            while True:
                writer.write(chunk(b": \n" * 1000))
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            left.set()
            raise

    upstream.handler = endless
    headers = {"Authorization": f"Bearer {server.key}", "Accept": "text/event-stream"}
    async with server.gateway.client.stream("GET", server.path, headers=headers) as stream:
        await anext(stream.aiter_raw())
        assert (await server.post(DANGER)).status_code == 200
    async with asyncio.timeout(60):
        await left.wait()
