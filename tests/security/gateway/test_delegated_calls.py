"""Attack 25 at the gateway: calls and streams by delegation end with the parent, and need what it needs."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, Seen
from tests.fakes.platform.mcp_client import mcp_client
from tests.security.delegation.delegating import Delegating, id_of
from tests.security.gateway.test_envoy_checks import Asking


@pytest.fixture
async def some(api: Api) -> Delegating:
    admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
    found = Delegating(api, admin)
    await found.prepare(action=Action.PROXY)
    return found


async def endless(seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def read_all(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


async def test_attack_25_a_stop_of_the_parent_cuts_the_childs_stream_and_refuses_its_next_call(
    api: Api,
    some: Delegating,
    gateway: Gateway,
    upstream: RawUpstream,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("evergrant_server.gateway.proxy.endpoint.RECHECK_S", 0.05)
    connection = await api.active(await api.integration())
    root = await some.token()
    only = f"{api.parts.settings.gateway_public_url}/v1/proxy/{connection.id}"
    child = await some.handed(root, "back", resource=only)
    path = f"/v1/proxy/{connection.id}/x"
    assert (await gateway.get(path, child)).status_code == 200
    (called,) = await api.records(AuditAction.PROXY_CALLED)
    assert called.detail["acts_for"]["chain"] == ["app:front", "app:front", "app:back"]
    assert (await api.lease(child)).json()["code"] == "not_permitted", "a resource of the gateway"
    other = await api.active(await api.integration("hr"))
    assert (await gateway.get(f"/v1/proxy/{other.id}/x", child)).json()["code"] == "not_found"
    upstream.handler = endless
    async with gateway.client.stream("GET", path, headers={"Authorization": f"Bearer {child}"}) as streamed:
        pieces = streamed.aiter_raw()
        await anext(pieces)
        stop = await api.post(f"/v1/delegations/{id_of(root)}/stop", some.admin)
        assert stop.json()["delegations_ended"] == 3
        with pytest.raises(httpx2.RemoteProtocolError):
            await asyncio.wait_for(read_all(pieces), 60)
    sent = len(upstream.seen)
    assert (await gateway.get(path, child)).json()["code"] == "delegation_ended"
    assert len(upstream.seen) == sent


async def test_a_stop_before_the_provider_answers_is_told_as_what_it_is(
    api: Api,
    some: Delegating,
    gateway: Gateway,
    upstream: RawUpstream,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("evergrant_server.gateway.proxy.endpoint.RECHECK_S", 0.05)
    connection = await api.active(await api.integration())
    token = await some.token()
    called = asyncio.Event()

    async def silent(seen: Seen, writer: asyncio.StreamWriter) -> None:
        called.set()
        await asyncio.Event().wait()

    upstream.handler = silent
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(gateway.get(f"/v1/proxy/{connection.id}/x", token))
        await called.wait()
        await api.post(f"/v1/delegations/{id_of(token)}/stop", some.admin)
    refused = waiting.result()
    assert (refused.status_code, refused.json()["code"]) == (403, "delegation_ended")


async def test_an_approval_that_the_first_apps_permit_demands_is_demanded_of_those_under_it(
    api: Api, some: Delegating, gateway: Gateway, upstream: RawUpstream
):
    connection = await api.active(await api.integration())
    child = await some.handed(await some.token(), "back")
    path = f"/v1/proxy/{connection.id}/x"
    assert (await gateway.get(path, child)).status_code == 200
    demands = {"integration": "*", "actions": ["proxy"], "call_approval": True}
    await some.put("/v1/apps/front/permits/only", demands)
    assert (await gateway.get(path, child)).json()["code"] == "call_approval_required"
    assert (await gateway.get(path, some.keys["back"])).status_code == 200
    assert len(upstream.seen) == 2


async def test_envoy_gets_no_token_for_a_call_that_the_first_apps_permit_wants_approved(
    api: Api, some: Delegating, gateway: Gateway
):
    connection = await api.active(await api.integration(provider="github"))
    ask = Asking(
        gateway,
        authorization=f"Bearer {await some.handed(await some.token(), 'back')}",
        evergrant_connection=connection.id,
        evergrant_envoy_key=await api.app_with("envoy", Action.TOKEN),
        host="api.github.com",
    )
    assert (await ask()).status_code == 200
    demands = {"integration": "*", "actions": ["proxy"], "call_approval": True}
    await some.put("/v1/apps/front/permits/only", demands)
    assert await ask.code() == "call_approval_required"


async def test_a_delegations_tools_are_those_of_its_subject(
    api: Api, some: Delegating, gateway: Gateway, upstream: RawUpstream
):
    crm = await api.integration()
    mine, theirs = [await api.active(crm, subject=it) for it in ("user-1", "user-2")]
    root = await some.token()
    async with mcp_client(gateway, root) as client:
        listed = (await client.call_tool("list_connections")).structured_content
        assert [it["connection_id"] for it in listed["connections"]] == [mine.id]
        for id, code in ((mine.id, None), (theirs.id, "not_found")):
            called = await client.call_tool("call_api", {"connection_id": id, "path": "/x"})
            assert called.structured_content.get("code") == code
        await api.post(f"/v1/delegations/{id_of(root)}/stop", some.admin)
        with pytest.raises(MCPError):
            await client.call_tool("list_connections")
    assert len(upstream.seen) == 1
