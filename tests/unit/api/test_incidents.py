"""Incidents over HTTP: the plan, the order with its confirmation, pauses, and who may do what."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import Incident, IncidentItem, ItemOutcome, ItemStep
from evergrant_server.core.ids import ConnectionId, IncidentId
from tests.fakes.api import TENANT, Api, running_api

INCIDENTS = "/v1/incidents"
BREACH: dict[str, Any] = {"kind": "breach", "integration": "crm"}
ORDER: dict[str, Any] = {**BREACH, "confirm": "crm", "reason": "INC-9"}


async def row(api: Api, id: str) -> Incident:
    async with api.store.read() as tx:
        incident = await tx.incidents.get(TENANT, IncidentId(id))
    assert incident is not None
    return incident


async def test_a_plan_counts_connections_and_names_who_does_what(api: Api):
    await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    plan = (await api.get(f"{INCIDENTS}/plan?kind=breach&integration=crm", boss)).json()
    assert (plan["confirm"], plan["connections"], plan["exact"]) == ("crm", 1, True)
    (integration,) = plan["integrations"]
    assert (integration["integration"], integration["connections"]) == ("crm", 1)
    assert [step["by"] for step in plan["steps"]][-1] == "subjects"
    leak = (await api.get(f"{INCIDENTS}/plan?kind=leak", boss)).json()
    assert (leak["confirm"], leak["steps"][0]["by"]) == (TENANT, "operator")
    assert any("rotate-secret crm" in str(step["command"]) for step in leak["steps"])
    since = f"{INCIDENTS}/plan?kind=breach&since=2026-01-01T00:00:00Z"
    assert (await api.get(since, boss)).json()["exact"] is False
    assert await api.outbox() == []


async def test_an_order_repeats_the_name_and_is_told_the_counts_otherwise(api: Api):
    await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    refused = await api.post(INCIDENTS, boss, {**ORDER, "confirm": "erp"})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "'crm'" in refused.json()["detail"]
    assert "1 connections" in refused.json()["detail"]
    assert await api.outbox() == []


async def test_an_order_is_a_row_a_message_and_a_record(api: Api):
    await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    ordered = await api.post(INCIDENTS, boss, {**ORDER, "wait": 3600})
    assert ordered.status_code == 202
    incident = await row(api, ordered.json()["id"])
    assert incident.waits_until - incident.created_at == timedelta(hours=1)
    (message,) = [sent for sent in await api.outbox() if sent.kind == "advance_incident"]
    assert message.target == f"incident:{TENANT}:{incident.id}"
    (record,) = await api.records(AuditAction.INCIDENT_OPENED)
    assert record.detail == {"kind": "breach", "reason": "INC-9", "integration": "crm"}


async def test_after_a_leak_the_roots_come_first(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    leak = {"kind": "leak", "confirm": TENANT, "reason": "INC-9"}
    refused = await api.post(INCIDENTS, boss, leak)
    assert (refused.status_code, "keys rotate" in refused.json()["detail"]) == (400, True)
    assert (await api.post(INCIDENTS, boss, {**leak, "roots_replaced": True})).status_code == 202
    by_app = {**leak, "roots_replaced": True, "app": "boss"}
    assert (await api.post(INCIDENTS, boss, by_app)).status_code == 400


async def test_the_app_of_a_breach_is_disabled_with_the_order_and_no_app_orders_its_own(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    report = await api.app_with("report", Action.TOKEN)
    order = {"kind": "breach", "app": "report", "confirm": "report", "reason": "INC-9"}
    assert (await api.post(INCIDENTS, boss, order)).status_code == 202
    assert (await api.get("/v1/connections", report)).json()["code"] == "app_disabled"
    own = {**order, "app": "boss", "confirm": "boss"}
    assert (await api.post(INCIDENTS, boss, own)).status_code == 400
    assert (
        await api.post(INCIDENTS, boss, {**order, "app": "absent", "confirm": "absent"})
    ).status_code == 404


async def test_an_incident_is_paused_goes_on_and_has_no_report_before_its_end(api: Api):
    await api.integration()
    boss = await api.app_with("boss", Action.ADMIN)
    place = f"{INCIDENTS}/{(await api.post(INCIDENTS, boss, ORDER)).json()['id']}"
    for verb, paused in (("pause", True), ("pause", True), ("resume", False)):
        assert (await api.post(f"{place}/{verb}", boss)).json()["paused"] is paused
    assert [r.detail["paused"] for r in await api.records(AuditAction.INCIDENT_PAUSED)] == [True, False]
    assert (await api.get(f"{place}/report", boss)).status_code == 202
    absent = f"{INCIDENTS}/inc_0000000000000000000000"
    assert (await api.post(f"{absent}/pause", boss)).status_code == 404
    assert (await api.get(f"{absent}/report", boss)).status_code == 404


async def test_connections_of_an_incident_are_listed_by_outcome(api: Api):
    connection = await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    incident = await row(api, (await api.post(INCIDENTS, boss, ORDER)).json()["id"])
    item = IncidentItem(
        tenant=TENANT,
        incident_id=incident.id,
        connection_id=ConnectionId(connection.id),
        integration="crm",
        provider=connection.provider,
        step=ItemStep.ENDED,
        outcome=ItemOutcome.RECONNECT,
    )
    async with api.worker.write() as tx:
        await tx.incident_items.add(item)
    place = f"{INCIDENTS}/{incident.id}/connections"
    (view,) = (await api.get(f"{place}?outcome=reconnect", boss)).json()["items"]
    assert (view["connection_id"], view["reconnected"]) == (connection.id, False)
    assert (await api.get(f"{place}?outcome=confirmed", boss)).json()["items"] == []


async def test_who_may_read_may_not_order(api: Api):
    await api.integration()
    auditor = await api.app_with("auditor", Action.AUDIT)
    assert (await api.get(f"{INCIDENTS}/plan?kind=breach&integration=crm", auditor)).status_code == 200
    assert (await api.get(INCIDENTS, auditor)).status_code == 200
    assert (await api.post(INCIDENTS, auditor, ORDER)).status_code == 403


async def test_with_four_eyes_an_order_waits_for_a_second_admin(tmp_path: Path):
    async with running_api(tmp_path, four_eyes=True) as api:
        await api.active(await api.integration())
        boss, second = await api.app_with("boss", Action.ADMIN), await api.app_with("second", Action.ADMIN)

        async def waits(order: dict[str, Any]) -> str:
            refused = await api.post(INCIDENTS, boss, order)
            assert (refused.status_code, refused.json()["code"]) == (403, "approval_required")
            return f"/v1/approvals/{refused.json()['approval_id']}"

        at = await waits(ORDER)
        assert await waits({**ORDER, "reason": "INC-10"}) != at, "another order is another approval"
        assert (await api.get(INCIDENTS, boss)).json()["items"] == []
        assert [sent for sent in await api.outbox() if sent.kind == "advance_incident"] == []
        assert (await api.post(at, boss)).status_code == 403, "not by oneself"
        assert (await api.post(at, second)).status_code == 200
        assert (await api.post(INCIDENTS, boss, ORDER)).status_code == 202
        (record,) = await api.records(AuditAction.INCIDENT_OPENED)
        assert record.detail["approved_by"] == "app:second"
        assert await waits(ORDER) == at, "an approval is used once"


async def test_a_report_in_pages_is_the_report(api: Api):
    integration = await api.integration()
    connections = [await api.active(integration, f"at-{n}", subject=f"user-{n}") for n in range(5)]
    boss = await api.app_with("boss", Action.ADMIN)
    ordered = (await api.post(INCIDENTS, boss, ORDER)).json()
    incident = await row(api, ordered["id"])
    async with api.worker.write() as tx:
        for number, connection in enumerate(connections):
            item = IncidentItem(
                tenant=TENANT,
                incident_id=incident.id,
                connection_id=ConnectionId(connection.id),
                integration="crm",
                provider=connection.provider,
                step=ItemStep.ENDED,
                outcome=ItemOutcome.CONFIRMED,
                line=f'{{"number":{number}}}',
            )
            await tx.incident_items.add(item)
        ended = incident.__replace__(
            header="{}", summary='{"reported":5}', note="note", finished_at=api.clock.now()
        )
        await tx.incidents.replace(ended, expected=incident.revision)
    path = f"{INCIDENTS}/{incident.id}/report"
    whole = await api.get(path, boss)
    parts, after = list[str](), ""
    while True:
        page = await api.get(path, boss, params={"limit": 2, "after": after})
        parts.append(page.text)
        if "x-evergrant-next" not in page.headers:
            break
        after = page.headers["x-evergrant-next"]
    assert (len(parts), "".join(parts)) == (3, whole.text)
    assert whole.text.count("\n") == 8
