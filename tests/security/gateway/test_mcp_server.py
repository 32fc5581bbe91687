"""Evergrant's own MCP server, by a real client in both eras: what it tells and calls, whom it refuses."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.gateway.tools import calls
from evergrant_server.gateway.tools.catalogue import TOOLS
from evergrant_server.gateway.tools.endpoint import OpenSessions
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, answer, running_gateway
from tests.fakes.platform.gateway_clients import authorized_client
from tests.fakes.platform.mcp_client import LEGACY, MODERN, mcp_client

ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY])
TOKEN = "at-a-token-that-is-long-enough"
HIDDEN = "*" * len(TOKEN)
READS = {"integration": "crm", "actions": ["proxy"], "methods": ["GET"], "paths": ["/user/**"]}


async def an_agent(api: Api, permit: dict[str, Any] = READS) -> tuple[str, str]:
    """An active connection of user-1, and the key of an agent with this permit."""
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await api.active(await api.integration(), TOKEN)
    key = await api.app_with("agent")
    put = await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=permit)
    assert put.status_code == 201, put.text
    return connection.id, key


@ERAS
async def test_a_model_finds_a_connection_and_calls_its_api_without_a_token(
    api: Api, gateway: Gateway, upstream: RawUpstream, era: str
):
    id, key = await an_agent(api)
    upstream.responses = [
        answer(json.dumps({"name": "Ann", "was": TOKEN}).encode(), "200 OK", "Content-Type: application/json")
    ]
    async with mcp_client(gateway, key, era=era) as client:
        shown = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert shown.keys() == TOOLS.keys()
        listed = (await client.call_tool("list_connections")).structured_content
        described = (await client.call_tool("describe_connection", {"connection_id": id})).structured_content
        called = await client.call_tool("call_api", {"connection_id": id, "path": "/user/me?x=ä b&y=%2B"})
    (row,) = listed["connections"]
    assert (row["connection_id"], row["subject"], row["state"]) == (id, "user-1", "active")
    assert row["may_call"]
    assert described["api_base_url"] == f"{upstream.url}/api"
    rule = {"effect": "allow", "methods": ["GET"], "paths": ["/user/**"], "needs_approval": False}
    assert described["calls"] == [rule]
    assert not called.is_error
    said = called.structured_content
    assert (said["status"], said["cut"]) == (200, False)
    assert json.loads(said["body"]) == {"name": "Ann", "was": HIDDEN}
    assert json.loads(called.content[0].text) == said, "for clients that read no structured content"
    (seen,) = upstream.seen
    assert seen.target == "/api/user/me?x=%C3%A4%20b&y=%2B"
    assert seen.values("authorization") == [f"Bearer {TOKEN}"]
    (record,) = await api.records(AuditAction.PROXY_CALLED)
    assert (record.object, record.detail["request"]) == (id, "GET /user/me")


REFUSED = (
    ({"path": "/orders"}, "not_permitted"),
    ({"path": "/user/x", "method": "POST"}, "not_permitted"),
    ({"path": "/user/%2e%2e/orders"}, "invalid_request"),
    ({"path": "//evil.example/"}, "invalid_request"),
    ({"path": "user"}, "invalid_request"),
    ({"path": "/user/x", "headers": {"a b": "x"}}, "invalid_request"),
    ({"path": "/user/x", "headers": {"X": "a\r\nAuthorization: Bearer x"}}, "invalid_request"),
    ({"path": "/user/x", "body": "x" * 70_000}, "body_too_large"),
    ({"path": "/user/x", "url": "https://evil.example"}, "invalid_request"),
    ({"path": "/user/x", "connection_id": "con_0000000000000000000000"}, "not_found"),
)


async def test_a_call_that_the_proxy_refuses_is_a_result_with_its_code(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    id, key = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        for asked, code in REFUSED:
            refused = await client.call_tool("call_api", {"connection_id": id, **asked})
            assert (refused.is_error, refused.structured_content["code"]) == (True, code), asked
            assert "evil" not in json.dumps(refused.structured_content)
    assert upstream.seen == []


async def test_a_header_of_the_model_is_no_credential(api: Api, gateway: Gateway, upstream: RawUpstream):
    id, key = await an_agent(api)
    given = {"AUTHORIZATION": "Bearer x", "Cookie": "a=b", "X-Forwarded-For": "8.8.8.8", "X-Own": "1"}
    async with mcp_client(gateway, key) as client:
        await client.call_tool("call_api", {"connection_id": id, "path": "/user/x", "headers": given})
    (seen,) = upstream.seen
    assert seen.values("authorization") == [f"Bearer {TOKEN}"]
    assert (seen.values("cookie"), seen.values("x-forwarded-for")) == ([], [])
    assert seen.values("x-own") == ["1"]


FORWARDING = (
    *("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X_Forwarded_Host", "X-Real-IP", "Via", "Host"),
    *("X-Original-URL", "X-Rewrite-URL", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "Client-IP"),
    *("X-Envoy-External-Address", "X-Envoy-Retry-On", "Evergrant-Delegation"),
    *("Content-Length", "Transfer-Encoding", "Connection", "Proxy-Authorization", "traceparent"),
)


async def test_a_header_of_the_model_says_nothing_of_where_a_call_comes_from(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    id, key = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        for names in (FORWARDING[::2], FORWARDING[1::2]):
            asked = {"connection_id": id, "path": "/user/x", "headers": dict.fromkeys(names, "192.0.2.7")}
            made = await client.call_tool("call_api", asked)
            assert made.structured_content["status"] == 200
    assert len(upstream.seen) == 2
    assert all("192.0.2.7" not in seen.head.decode() for seen in upstream.seen)


async def test_a_model_cannot_forge_the_address_that_a_permit_names(
    api: Api, gateway: Gateway, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    """Where the host runs beside the gateway, its peer is a proxy that is trusted."""
    monkeypatch.setattr(gateway.parts.api.settings, "trusted_proxies", ("127.0.0.1/32",))
    permit = {"integration": "*", "actions": ["proxy"], "sources": ["192.0.2.0/24"]}
    id, key = await an_agent(api, permit)
    asked = {"connection_id": id, "path": "/user/x", "headers": {"X-Forwarded-For": "192.0.2.7"}}
    async with mcp_client(gateway, key) as client:
        refused = await client.call_tool("call_api", asked)
    assert refused.structured_content["code"] == "not_found"
    assert upstream.seen == []


async def test_a_long_response_is_cut_and_one_that_is_no_text_is_not_shown(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    id, key = await an_agent(api)
    long = "ä".encode() * calls.MOST_SHOWN
    upstream.responses = [answer(b"x" + long), answer(b"\xff\xfe\0")]
    async with mcp_client(gateway, key) as client:
        asked = {"connection_id": id, "path": "/user/x"}
        cut = (await client.call_tool("call_api", asked)).structured_content
        binary = (await client.call_tool("call_api", asked)).structured_content
    assert cut["cut"]
    assert "cut after 65536 bytes" in cut["note"]
    assert calls.MOST_SHOWN - 6 < len(cut["body"].encode()) <= calls.MOST_SHOWN
    assert ("body" in binary, binary["cut"]) == (False, False)
    assert "no text" in binary["note"]


async def test_only_what_the_permits_cover_is_listed_and_described(api: Api, gateway: Gateway):
    theirs = await api.active(await api.integration("erp"), subject="user-2")
    id, key = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        listed = (await client.call_tool("list_connections")).structured_content
        hidden = await client.call_tool("describe_connection", {"connection_id": theirs.id})
        integrations = (await client.call_tool("list_integrations")).structured_content
    assert [it["connection_id"] for it in listed["connections"]] == [id]
    assert hidden.structured_content["code"] == "not_found"
    assert integrations == {"integrations": []}, "no permit lets it connect"


async def test_a_list_has_pages(api: Api, gateway: Gateway):
    crm = await api.integration()
    made = {(await api.connection(crm, subject=f"user-{n}")).id for n in range(55)}
    key = await api.app_with("agent", Action.PROXY, Action.CONNECT)
    async with mcp_client(gateway, key) as client:
        first = (await client.call_tool("list_connections")).structured_content
        rest = await client.call_tool("list_connections", {"cursor": first["next_cursor"]})
        bent = await client.call_tool("list_connections", {"cursor": first["next_cursor"][:-1]})
        integrations = (await client.call_tool("list_integrations")).structured_content
    assert len(first["connections"]) == 50
    found = {it["connection_id"] for it in (*first["connections"], *rest.structured_content["connections"])}
    assert found == made
    assert bent.structured_content["code"] == "invalid_request"
    assert integrations == {"integrations": [{"integration": "crm", "provider": "gitlab"}]}


# --- who may ask --------------------------------------------------------------------------

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
MEDIA = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


async def post(gateway: Gateway, key: str, message: Any = PING, **headers: str) -> httpx2.Response:
    return await gateway.call("POST", "/mcp", key, json=message, headers={**MEDIA, **headers})


async def begun(gateway: Gateway, key: str) -> str:
    """The id of a new session of the older era."""
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    made = await post(gateway, key, {**PING, "method": "initialize", "params": params})
    assert made.status_code == 200, made.text
    return made.headers["mcp-session-id"]


async def test_who_is_not_known_gets_a_challenge(api: Api, gateway: Gateway):
    none = await gateway.client.post("/mcp", json=PING, headers=MEDIA)
    wrong = await post(gateway, "evg_key_nothing")
    for refused in (none, wrong):
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_another_site_and_another_name_are_refused(api: Api, gateway: Gateway):
    _, key = await an_agent(api)
    ours = gateway.parts.api.settings.gateway_public_url
    assert (await post(gateway, key, Origin="https://evil.example")).json()["code"] == "not_permitted"
    assert (await post(gateway, key, Origin="null")).json()["code"] == "not_permitted"
    assert (await post(gateway, key, Host="evil.example")).json()["code"] == "invalid_request"
    session = await begun(gateway, key)
    for allowed in ({"Origin": ours}, {"Host": f"localhost:{gateway.port}"}):
        pinged = await post(gateway, key, **{"Mcp-Session-Id": session, **allowed})
        assert pinged.status_code == 200, pinged.text


async def test_a_session_id_with_another_callers_key_is_unknown(api: Api, gateway: Gateway):
    """Attack 5."""
    _, mine = await an_agent(api)
    theirs = await api.app_with("other", Action.PROXY)
    session = await begun(gateway, mine)
    for key, id, status in ((mine, session, 200), (theirs, session, 404), (mine, session[:-1] + "g", 404)):
        assert (await post(gateway, key, **{"Mcp-Session-Id": id})).status_code == status
    ended = await gateway.call("DELETE", "/mcp", theirs, headers={**MEDIA, "Mcp-Session-Id": session})
    assert ended.status_code == 404
    assert (await post(gateway, mine, **{"Mcp-Session-Id": session})).status_code == 200


async def test_sessions_and_bodies_are_bounded(
    api: Api, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(OpenSessions, "elapsed", staticmethod(lambda: now[0]))
    monkeypatch.setattr("evergrant_server.gateway.tools.endpoint.MOST_SESSIONS_PER_APP", 2)
    _, key = await an_agent(api)
    other = await api.app_with("other", Action.PROXY)
    begin = {**PING, "method": "initialize"}
    async with running_gateway(api, upstream) as gateway:
        session, ends = [await begun(gateway, key) for _ in range(2)]
        more = await post(gateway, key, begin)
        assert (more.status_code, more.json()["code"]) == (429, "rate_limited")
        await begun(gateway, other)
        ended = await gateway.call("DELETE", "/mcp", key, headers={**MEDIA, "Mcp-Session-Id": ends})
        assert ended.is_success
        await begun(gateway, key)
        assert (await post(gateway, key, begin)).status_code == 429
        now[0] += 601.0
        await begun(gateway, key)
        headers = {"Mcp-Session-Id": session}
        large = await post(gateway, key, {**PING, "params": {"x": "x" * 300_000}}, **headers)
        assert large.status_code == 413
        assert (await post(gateway, key, **headers)).status_code == 200


async def test_a_stopped_agents_session_and_stream_end(
    api: Api, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.gateway.tools.endpoint.RECHECK_S", 0.05)
    _, key = await an_agent(api)
    session = await begun(gateway, key)
    headers = {"Authorization": f"Bearer {key}", "Mcp-Session-Id": session, "Accept": "text/event-stream"}
    async with gateway.client.stream("GET", "/mcp", headers=headers) as stream:
        assert stream.status_code == 200
        admin = await api.app_with("admin-2", Action.ADMIN)
        put = await api.call("PUT", "/v1/apps/agent", admin, json={"disabled": True})
        assert put.is_success, put.text
        with pytest.raises(httpx2.RemoteProtocolError):
            await stream.aread()
    assert (await post(gateway, key, **{"Mcp-Session-Id": session})).json()["code"] == "app_disabled"


async def test_an_unknown_tool_is_an_error_of_the_protocol(api: Api, gateway: Gateway):
    _, key = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        with pytest.raises(MCPError, match="no tool of this name"):
            await client.call_tool("drop_tables")


async def test_no_answer_and_no_log_has_a_token(
    api: Api, gateway: Gateway, upstream: RawUpstream, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "evergrant")
    caplog.set_level(logging.DEBUG, "mcp")
    id, key = await an_agent(api)
    echo = answer(TOKEN.encode(), "500 Oops", f"Location: https://x/{TOKEN}", f"Link: <{TOKEN}>")
    upstream.responses = [echo, echo]
    said = ""
    for era in (MODERN, LEGACY):
        async with mcp_client(gateway, key, era=era) as client:
            for name, given in (
                ("list_connections", {}),
                ("describe_connection", {"connection_id": id}),
                ("call_api", {"connection_id": id, "path": "/user/x"}),
                ("call_api", {"connection_id": id, "path": "/nowhere"}),
            ):
                said += (await client.call_tool(name, given)).model_dump_json()
    assert HIDDEN in said
    assert TOKEN not in said + caplog.text
    assert key not in said + caplog.text


# --- clients with a token of Evergrant's own issuer ---------------------------------------


async def test_a_clients_token_acts_for_its_subject_alone(api: Api, gateway: Gateway, upstream: RawUpstream):
    crm = await api.integration()
    mine, theirs = [await api.active(crm, TOKEN, subject=it) for it in ("user-1", "user-2")]
    await api.app_with("agent", Action.PROXY, Action.CONNECT)
    agent = await authorized_client(api, "agent")
    token = (await agent.tokens("user-1"))["access_token"]
    async with mcp_client(gateway, token) as client:
        listed = (await client.call_tool("list_connections")).structured_content
        assert [it["connection_id"] for it in listed["connections"]] == [mine.id]
        called = await client.call_tool("call_api", {"connection_id": mine.id, "path": "/user"})
        assert called.structured_content["status"] == 200
        for name, given, code in (
            ("describe_connection", {"connection_id": theirs.id}, "not_found"),
            ("call_api", {"connection_id": theirs.id, "path": "/user"}, "not_found"),
            ("request_approval", {"connection_id": theirs.id, "path": "/x", "reason": "x"}, "not_found"),
            ("request_connection", {"integration": "crm", "subject": "user-2"}, "not_permitted"),
            ("list_connections", {"subject": "user-2"}, "not_permitted"),
        ):
            refused = await client.call_tool(name, given)
            assert (refused.is_error, refused.structured_content["code"]) == (True, code), name
        without = await client.call_tool("request_connection", {"integration": "crm"})
        assert without.structured_content["connection_id"] == mine.id
    assert len(upstream.seen) == 1
    *_, record = await api.records(AuditAction.PROXY_CALLED)
    assert (record.detail["client"], record.detail["subject"]) == (agent.client.client_id, "user-1")


async def test_rfc8707_2_a_token_of_another_resource_opens_no_tool(api: Api, gateway: Gateway):
    """Attack 1."""
    connection = await api.active(await api.integration(), TOKEN)
    await api.app_with("agent", Action.PROXY)
    agent = await authorized_client(api, "agent")
    token = (await agent.tokens("user-1", connection.id))["access_token"]
    refused = await post(gateway, token)
    assert refused.status_code == 401
    metadata = f"{gateway.parts.api.settings.gateway_public_url}/.well-known/oauth-protected-resource/mcp"
    assert f'resource_metadata="{metadata}"' in refused.headers["www-authenticate"]


async def test_the_program_of_the_guide(
    api: Api, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    id, key = await an_agent(api)
    page = (Path(__file__).parents[3] / "docs/guide/mcp-server.md").read_text(encoding="utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setenv("EVERGRANT_API_KEY", key)
    monkeypatch.setenv("EVERGRANT_GATEWAY_URL", f"http://127.0.0.1:{gateway.port}")
    await asyncio.to_thread(exec, program, {"__name__": "__main__"})
    assert id in capsys.readouterr().out
