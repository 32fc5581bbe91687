"""Bulk orders over HTTP: plans, confirmations, what is written, and who may."""

from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.bulk import BulkOrder
from evergrant_server.core.connections.incidents import IncidentItem, IncidentState, ItemOutcome, ItemStep
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import BulkId, IncidentId
from tests.fakes.api import TENANT, Api

BULK = "/v1/connections/bulk"
REVOKE: dict[str, Any] = {"action": "revoke", "integration": "crm", "confirm": "crm", "reason": "INC-9"}


async def order_of(api: Api, id: str) -> BulkOrder:
    async with api.store.read() as tx:
        order = await tx.bulk_orders.get(TENANT, BulkId(id))
    assert order is not None
    return order


async def test_a_plan_counts_by_state_and_says_what_an_admin_can_do(api: Api):
    crm = await api.integration("crm")
    gone = await api.active(crm, subject="ann")
    await api.active(crm, subject="bob")
    ended = await api.active(crm, subject="cyd")
    await api.change(gone, lambda row: row.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    await api.change(ended, lambda row: row.revocation_requested("left", api.clock.now()))
    boss = await api.app_with("boss", Action.ADMIN)

    async def plan(query: str) -> dict[str, Any]:
        answer = await api.get(f"{BULK}/plan?{query}", boss)
        assert answer.status_code == 200, answer.text
        return answer.json()

    planned = await plan("action=revoke&integration=crm")
    assert (planned["confirm"], planned["totals"]["total"]) == ("crm", 3)
    assert planned["totals"]["states"] == {"needs_reauth": 1, "active": 1, "revoking": 1}
    assert (await plan("action=revoke"))["confirm"] == TENANT
    asked = await plan("action=reconnect&state=needs_reauth")
    assert (asked["totals"]["total"], asked["confirm"], asked["listening"]) == (1, None, 0)
    assert "nor make a link" in asked["how"]
    hook = {"url": "https://app.example/events", "events": ["connection.needs_reauth"]}
    assert (await api.call("PUT", "/v1/webhooks/a", boss, json=hook)).is_success
    assert (await plan("action=reconnect"))["listening"] == 1
    assert (await plan(f"action=refresh&connections={gone.id}"))["totals"]["total"] == 1
    for absent in (f"connections={gone.id}+con_0000000000000000000000", "integration=erp"):
        assert (await api.get(f"{BULK}/plan?action=refresh&{absent}", boss)).status_code == 404
    assert (await plan("action=refresh&search=b"))["totals"]["total"] == 1
    assert await api.records(AuditAction.BULK_OPENED) == []


async def test_an_order_is_a_row_a_message_and_a_record_without_a_subject(api: Api):
    await api.active(await api.integration("crm"), subject="ann")
    boss = await api.app_with("boss", Action.ADMIN)
    body = {"action": "refresh", "search": "ann", "reason": "INC-9", "wait": 60}
    ordered = await api.post(BULK, boss, body)
    assert ordered.status_code == 202, ordered.text
    order = await order_of(api, ordered.json()["id"])
    assert (order.filters.subject, order.state) == ("ann", IncidentState.SELECTING)
    assert (order.waits_until - order.created_at).total_seconds() == 60
    (message,) = [sent for sent in await api.outbox() if sent.kind == "advance_bulk"]
    assert message.target == f"bulk:{TENANT}:{order.id}"
    (record,) = await api.records(AuditAction.BULK_OPENED)
    assert record.detail == {"action": "refresh", "reason": "INC-9", "searched": True}


@pytest.mark.parametrize("action", ["revoke", "label"])
async def test_danger_repeats_the_name_and_is_told_the_count_otherwise(api: Api, action: str):
    await api.active(await api.integration("crm"))
    boss = await api.app_with("boss", Action.ADMIN)
    body = {**REVOKE, "action": action} | ({"label": "work"} if action == "label" else {})
    for confirm in ({"confirm": "erp"}, {"confirm": None}):
        refused = await api.post(BULK, boss, {**body, **confirm})
        assert (refused.status_code, refused.json()["field"]) == (400, "confirm")
        assert "'crm': it is about 1 connections" in refused.json()["detail"]
    assert await api.outbox() == []
    assert (await api.post(BULK, boss, body)).status_code == 202


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "label"},
        {"action": "refresh", "label": "work"},
        {"action": "refresh", "connections": ["con_0000000000000000000000"], "integration": "crm"},
        {"action": "refresh", "connections": []},
        {"action": "refresh", "connections": ["int_0000000000000000000000"]},
        {"action": "fly"},
    ],
)
async def test_an_order_that_says_two_things_is_refused(api: Api, wrong: dict[str, Any]):
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.post(BULK, boss, {"reason": "INC-9", **wrong})).status_code == 400


async def test_an_order_is_paused_goes_on_and_lists_its_connections_by_outcome(api: Api):
    connection = await api.active(await api.integration("crm"))
    boss = await api.app_with("boss", Action.ADMIN)
    order = (await api.post(BULK, boss, {"action": "refresh", "reason": "INC-9"})).json()
    place = f"{BULK}/{order['id']}"
    for verb, paused in (("pause", True), ("pause", True), ("resume", False)):
        assert (await api.post(f"{place}/{verb}", boss)).json()["paused"] is paused
    assert [record.detail["paused"] for record in await api.records(AuditAction.BULK_PAUSED)] == [True, False]
    item = IncidentItem(
        tenant=TENANT,
        incident_id=IncidentId(order["id"]),
        connection_id=connection.id,
        integration="crm",
        provider=connection.provider,
        step=ItemStep.ENDED,
        outcome=ItemOutcome.RENEWED,
    )
    async with api.worker.write() as tx:
        await tx.incident_items.add(item)
    (view,) = (await api.get(f"{place}/connections?outcome=renewed", boss)).json()["items"]
    assert (view["connection_id"], view["outcome"], view["state"]) == (connection.id, "renewed", "active")
    assert (view["subject"], view["label"]) == (connection.subject, connection.label), "whose it is"
    assert (await api.get(f"{place}/connections?outcome=failed", boss)).json()["items"] == []
    assert [listed["id"] for listed in (await api.get(BULK, boss)).json()["items"]] == [order["id"]]
    absent = f"{BULK}/blk_0000000000000000000000"
    assert (await api.post(f"{absent}/pause", boss)).status_code == 404


async def test_who_reads_may_plan_and_look_and_only_an_admin_of_the_tenant_orders(api: Api):
    await api.integration("crm")
    auditor = await api.app_with("auditor", Action.AUDIT)
    assert (await api.get(f"{BULK}/plan?action=refresh", auditor)).status_code == 200
    body = {"action": "refresh", "integration": "crm", "reason": "INC-9"}
    for key in (auditor, await api.app_with("crm-admin", Action.ADMIN, integration="crm")):
        assert (await api.post(BULK, key, body)).status_code == 403
    crm = await api.app_with("crm", Action.CONNECT, integration="crm")
    assert (await api.get(BULK, crm)).status_code == 403
