"""Attacks on agents: an approval for other calls, twice or by another principal; requests after a stop."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api

PATH = "/v1/call-approvals"
CALL: dict[str, Any] = {"method": "POST", "url": "https://api.example.com/pay?to=bob", "body": '{"sum": 5}'}
TOOL: dict[str, Any] = {"tool": "pay", "arguments": {"to": "bob", "sum": 5}}


async def an_approved_call(api: Api, called: dict[str, Any]) -> tuple[str, str]:
    """The agent's key, and the connection that the call is for."""
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await api.active(await api.integration(), lifetime=None)
    bot = await api.app_with("bot", Action.TOKEN, Action.PROXY)
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()
    await api.call("PUT", "/v1/agents/bot", admin, json={"purpose": "pays", "ends_at": ends_at})
    wanted = {"connection_id": connection.id, **called, "reason": "invoice 7"}
    id = (await api.post(PATH, bot, wanted)).json()["id"]
    assert (await api.post(f"{PATH}/{id}/approve", admin)).json()["state"] == "approved"
    return bot, connection.id


async def used(api: Api, key: str, connection_id: str, called: dict[str, Any]) -> str:
    answer = await api.post(f"{PATH}/use", key, {"connection_id": connection_id, **called})
    return answer.json()["state" if answer.is_success else "code"]


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (CALL, {**CALL, "url": "https://api.example.com/pay?to=eve"}),
        (CALL, {**CALL, "url": "https://api.example.com/pay?to=bob&to=eve"}),
        (CALL, {**CALL, "url": "https://api.example.com/pay?to=%62ob"}),
        (CALL, {**CALL, "method": "PUT"}),
        (CALL, {**CALL, "body": '{"sum": 50}'}),
        (CALL, {**CALL, "body": '{"sum":5}'}),
        (CALL, {**CALL, "body": None}),
        (TOOL, {"tool": "pay", "arguments": {"to": "bob", "sum": 6}}),
        (TOOL, {"tool": "pay", "arguments": {"to": "bob", "sum": "5"}}),
        (TOOL, {"tool": "pay", "arguments": {"to": "bob", "sum": 5, "more": None}}),
        (TOOL, {"tool": "pay", "arguments": {}}),
        (TOOL, {"tool": "Pay", "arguments": {"to": "bob", "sum": 5}}),
    ],
)
async def test_attack_24_an_approval_is_for_no_other_call(
    api: Api, asked: dict[str, Any], made: dict[str, Any]
):
    bot, connection_id = await an_approved_call(api, asked)
    assert await used(api, bot, connection_id, made) == "call_approval_required"
    assert await used(api, bot, connection_id, asked) == "used"


async def test_attack_24_the_same_arguments_written_otherwise_are_the_same_call(api: Api):
    bot, connection_id = await an_approved_call(api, TOOL)
    other = {"arguments": {"sum": 5.0, "to": "bob"}, "tool": "pay"}
    assert await used(api, bot, connection_id, other) == "used"


async def test_attack_24_an_approval_is_of_no_other_principal_and_no_other_connection(api: Api):
    bot, connection_id = await an_approved_call(api, CALL)
    eve = await api.app_with("eve", Action.TOKEN, Action.PROXY)
    assert await used(api, eve, connection_id, CALL) == "call_approval_required"
    async with api.worker.read() as tx:
        crm = await tx.integrations.by_name((await api.app_named("bot")).tenant, "crm")
    assert crm is not None
    other = await api.active(crm, "at-2", subject="user-2")
    assert await used(api, bot, other.id, CALL) == "call_approval_required"
    assert await used(api, bot, connection_id, CALL) == "used"


async def test_attack_24_a_hundred_uses_at_once_are_one(api: Api):
    bot, connection_id = await an_approved_call(api, CALL)
    found = await asyncio.gather(*(used(api, bot, connection_id, CALL) for _ in range(100)))
    assert found.count("used") == 1
    assert set(found) <= {"used", "call_approval_required", "store_conflict"}
    assert len(await api.records(AuditAction.CALL_APPROVAL_USED)) == 1


async def test_attack_25_no_lease_and_no_approved_call_after_the_stops_commit(api: Api):
    bot, connection_id = await an_approved_call(api, CALL)
    boss = await api.app_with("boss", Action.ADMIN)
    begun, stopped = asyncio.Event(), asyncio.Event()
    late: list[int] = []

    async def lease() -> None:
        while True:
            after = stopped.is_set()
            answer = await api.lease(bot)
            begun.set()
            if after:
                late.append(answer.status_code)
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(lease())
        await begun.wait()
        assert (await api.post("/v1/agents/bot/stop", boss)).status_code == 202
        stopped.set()
    assert late == [403] * 100
    records = await api.records(AuditAction.LEASE_ISSUED, AuditAction.AGENT_STOPPED)
    in_main = [it for it in records if it.action is AuditAction.AGENT_STOPPED]
    assert len(in_main) == 1
    assert await used(api, bot, connection_id, CALL) == "app_disabled"
