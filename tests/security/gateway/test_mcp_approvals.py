"""A call through MCP that a person has to approve: the page is elicited, and the call is made once."""

import asyncio
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream
from tests.fakes.platform.mcp_client import LEGACY, mcp_client

DEMANDS = {"integration": "*", "actions": ["proxy"], "call_approval": True}
REFUND = {"method": "POST", "path": "/refunds?order=7", "body": {"sum": 5}, "reason": "order 7 came broken"}


class Admin:
    """Decides what page it is shown, as an app with admin; the console: tests/security/pages."""

    def __init__(self, api: Api, key: str, decision: str = "approve") -> None:
        self.api, self.key, self.decision = api, key, decision
        self.pages: list[str] = []
        self.called: dict[str, Any] = {}

    async def decides(self, url: str) -> None:
        self.pages.append(url)
        shown = f"/v1/call-approvals/{url.rpartition('/')[2]}"
        self.called = (await self.api.get(shown, self.key)).json()
        assert (await self.api.post(f"{shown}/{self.decision}", self.key)).status_code == 200

    async def waits(self, url: str) -> None:
        self.pages.append(url)


async def an_agent(api: Api, decision: str = "approve") -> tuple[dict[str, Any], str, Admin]:
    """The arguments of a call, and the keys of the agent that makes it and of who decides."""
    admin = await api.app_with("admin", Action.ADMIN)
    connection, key = await api.active_for("agent")
    await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=DEMANDS)
    return {"connection_id": connection.id, **REFUND}, key, Admin(api, admin, decision)


async def test_a_call_leads_to_its_approval_and_is_made_once(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    refund, key, admin = await an_agent(api)
    async with mcp_client(gateway, key, opens=admin.decides) as client:
        made = await client.call_tool("call_api", refund)
        assert (made.structured_content["status"], len(upstream.seen)) == (200, 1)
        (page,) = admin.pages
        assert page.startswith(f"{api.parts.settings.public_url}/console/call-approvals/cap_")
        shown = admin.called["call"]
        assert (shown["method"], shown["url"]) == ("POST", f"{upstream.url}/api/refunds?order=7")
        assert (shown["body"], admin.called["reason"]) == ('{"sum":5}', "order 7 came broken")
        assert upstream.seen[0].body == b'{"sum":5}'
        await client.call_tool("call_api", refund)
    assert len(set(admin.pages)) == 2, "the same call again needs another approval"
    assert len(await api.records(AuditAction.CALL_APPROVAL_USED)) == 2


async def test_legacy_the_page_is_in_the_error(api: Api, gateway: Gateway, upstream: RawUpstream):
    refund, key, admin = await an_agent(api)
    async with mcp_client(gateway, key, era=LEGACY, opens=admin.waits) as client:
        with pytest.raises(MCPError) as raised:
            await client.call_tool("call_api", refund)
        (asked,) = UrlElicitationRequiredError.from_error(raised.value.error).elicitations
        await admin.decides(asked.url)
        made = await client.call_tool("call_api", refund)
    assert (made.structured_content["status"], len(upstream.seen)) == (200, 1)


async def test_a_denied_call_is_not_made_and_not_asked_for_again(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    refund, key, admin = await an_agent(api, "deny")
    async with mcp_client(gateway, key, opens=admin.decides) as client:
        for _ in range(2):
            denied = (await client.call_tool("call_api", refund)).structured_content
            assert (denied["code"], denied["state"]) == ("call_approval_required", "denied")
    assert len(admin.pages) == 1
    assert upstream.seen == []


async def test_an_approval_of_days_is_asked_for_ahead_and_looked_at(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    refund, key, admin = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        asked = (await client.call_tool("request_approval", refund)).structured_content
        again = (await client.call_tool("request_approval", refund)).structured_content
        assert (asked["state"], asked["approval_id"]) == ("waiting", again["approval_id"])
        refused = await client.call_tool("call_api", refund)
        assert refused.structured_content["code"] == "call_approval_required"
        assert refused.structured_content["url"] == asked["page"]
        await admin.decides(asked["page"])
        look = {"approval_id": asked["approval_id"]}
        assert (await client.call_tool("get_approval", look)).structured_content["state"] == "approved"
        other = {**refund, "body": {"sum": 50}}
        assert (await client.call_tool("call_api", other)).structured_content[
            "code"
        ] == refused.structured_content["code"]
        assert (await client.call_tool("call_api", refund)).structured_content["status"] == 200
        used = (await client.call_tool("get_approval", look)).structured_content
    assert (used["state"], used["next_step"]) == ("used", "It is over.")
    assert [it.body for it in upstream.seen] == [b'{"sum":5}']


async def test_who_opens_nothing_or_decides_later_leaves_the_call_unmade(
    api: Api, gateway: Gateway, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.gateway.tools.elicitation.HOLD_S", 0.01)
    refund, key, admin = await an_agent(api)
    async with mcp_client(gateway, key, opens=admin.waits) as client:
        waits = (await client.call_tool("call_api", refund)).structured_content
    assert (waits["code"], waits["state"]) == ("call_approval_required", "waiting")
    assert "get_approval" in waits["detail"]
    assert upstream.seen == []


async def test_another_apps_approval_is_not_found(api: Api, gateway: Gateway):
    refund, key, _ = await an_agent(api)
    other = await api.app_with("other", Action.PROXY)
    async with mcp_client(gateway, key) as client, mcp_client(gateway, other) as theirs:
        asked = (await client.call_tool("request_approval", refund)).structured_content
        look = {"approval_id": asked["approval_id"]}
        assert (await theirs.call_tool("get_approval", look)).structured_content["code"] == "not_found"


async def test_the_models_headers_are_approved_with_the_call(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    refund, key, admin = await an_agent(api)
    mine = refund | {"headers": {"Stripe-Account": "acct_1", "X-Forwarded-Host": "evil.example"}}
    theirs = refund | {"headers": {"Stripe-Account": "acct_2"}}
    async with mcp_client(gateway, key) as client:
        asked = (await client.call_tool("request_approval", mine)).structured_content
        await admin.decides(asked["page"])
        for other in (theirs, refund, mine | {"headers": {**mine["headers"], "Prefer": "x"}}):
            refused = (await client.call_tool("call_api", other)).structured_content
            assert refused["code"] == "call_approval_required"
        assert upstream.seen == []
        made = (await client.call_tool("call_api", mine)).structured_content
    assert made["status"] == 200
    assert admin.called["call"]["headers"] == [
        {"name": "content-type", "value": "application/json"},
        {"name": "stripe-account", "value": "acct_1"},
    ]
    (seen,) = upstream.seen
    assert (seen.values("stripe-account"), seen.values("x-forwarded-host")) == (["acct_1"], [])


async def test_twenty_calls_at_once_use_one_approval_once(api: Api, gateway: Gateway, upstream: RawUpstream):
    refund, key, admin = await an_agent(api)
    async with mcp_client(gateway, key) as client:
        asked = (await client.call_tool("request_approval", refund)).structured_content
        await admin.decides(asked["page"])
        made = await asyncio.gather(*(client.call_tool("call_api", refund) for _ in range(20)))
    assert sum(not it.is_error for it in made) == 1
    assert len(upstream.seen) == 1
