"""Audit, history, health and the reference: what is only read."""

import base64
import json
import re
from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.store import HistoryExport
from tests.fakes.api import TENANT, Api


def event(number: int, kind: str, minute: int, **attributes: Any) -> dict[str, Any]:
    name = kind.split("_")
    member = name[0].lower() + "".join(part.title() for part in name[1:]) + "EventAttributes"
    return {
        "eventId": str(number),
        "eventTime": f"2026-01-02T03:{minute:02}:00.123456789Z",
        "eventType": f"EVENT_TYPE_{kind}",
        member: attributes,
    }


def payload(value: Any) -> dict[str, Any]:
    return {"payloads": [{"metadata": {}, "data": base64.b64encode(json.dumps(value).encode()).decode()}]}


FIRST = [
    event(1, "WORKFLOW_EXECUTION_STARTED", 1, originalExecutionRunId="run-1"),
    event(2, "WORKFLOW_TASK_SCHEDULED", 1),
    event(
        3,
        "WORKFLOW_EXECUTION_SIGNALED",
        2,
        signalName="consent_granted",
        input=payload(
            {"attempt_id": "cns_1", "context": {"by": "subject", "trace_id": "ab"}, "hidden": "canary"}
        ),
    ),
    event(4, "ACTIVITY_TASK_SCHEDULED", 3, activityType={"name": "exchange_code"}),
    event(5, "ACTIVITY_TASK_COMPLETED", 4, scheduledEventId="4", result=payload({"generation": 1})),
    event(6, "WORKFLOW_EXECUTION_CONTINUED_AS_NEW", 5, newExecutionRunId="run-2"),
]
SECOND = [
    event(
        1, "WORKFLOW_EXECUTION_STARTED", 5, originalExecutionRunId="run-2", continuedExecutionRunId="run-1"
    ),
    event(2, "TIMER_STARTED", 6),
]


async def test_history_joins_exported_runs_and_the_live_one(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN)
    workflow = connection_workflow_id(TENANT, connection.id)
    facts = {"exported_at": api.clock.now(), "closed": True, "last_event_id": 6, "events": FIRST}
    names = {"tenant": TENANT, "connection_id": connection.id, "workflow_id": workflow, "run_id": "run-1"}
    export = HistoryExport(**names, **facts)
    async with api.worker.write() as tx:
        await tx.histories.add(export)
    api.link.events = {None: SECOND}
    answer = await api.get(f"/v1/connections/{connection.id}/history", key)
    body = answer.json()
    assert [(it["run_id"], it["event_id"], it["what"]) for it in body["items"]] == [
        ("run-1", 1, "run started"),
        ("run-1", 3, "signal consent_granted"),
        ("run-1", 4, "activity exchange_code scheduled"),
        ("run-1", 5, "activity exchange_code completed"),
        ("run-1", 6, "run continued as new"),
        ("run-2", 1, "run started"),
        ("run-2", 2, "timer started"),
    ]
    assert body["items"][1]["detail"] == {"attempt_id": "cns_1", "by": "subject", "trace_id": "ab"}
    assert body["live"] is True
    assert "canary" not in answer.text
    api.link.up = False
    kept = (await api.get(f"/v1/connections/{connection.id}/history", key)).json()
    assert (len(kept["items"]), kept["live"]) == (5, False)
    other = await api.active(await api.integration("other"))  # nothing of it is exported yet
    api.link.up, api.link.events = True, {None: SECOND, "run-1": FIRST}
    body = (await api.get(f"/v1/connections/{other.id}/history", key)).json()
    assert {it["run_id"] for it in body["items"]} == {"run-1", "run-2"}


async def test_audit_pages_in_order_and_verifies(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    for _ in range(5):
        await api.lease(key)
        api.clock.advance(1)
    seen, cursor = [], ""
    while True:
        page = (await api.get(f"/v1/connections/{connection.id}/audit?limit=2{cursor}", admin)).json()
        seen += [it["seq"] for it in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [0, 1, 2, 3, 4]
    verdict = (await api.get("/v1/audit/verify", admin)).json()
    assert (verdict["ok"], verdict["records"]) == (True, 5)
    assert verdict["heads"]["api-test"]["size"] == 5


async def test_health(api: Api):
    assert (await api.get("/livez")).json() == {"status": "ok"}
    ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    api.link.up = False
    without = await api.get("/readyz")
    assert (without.status_code, without.json()["checks"]["temporal"]) == (200, "temporal_unavailable")


async def test_the_reference_loads_nothing_from_elsewhere(api: Api):
    page = await api.get("/docs")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert "//" not in page.text.replace("https://evergrant.test", "").replace("://", "")
    for said in ("/v1/lease", "/v1/connections/{connection_id}/token", 'id="consent_required"'):
        assert said in page.text
    schema = (await api.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.1")
    lease = schema["paths"]["/v1/lease"]["post"]
    assert "application/problem+json" in lease["responses"]["409"]["content"]
    documented = [it for path, it in schema["paths"].items() if path.startswith("/v1")]
    assert all("422" not in operation["responses"] for path in documented for operation in path.values())
    references = set(_references(schema))
    assert references <= {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}


def _references(value: Any):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


async def test_the_page_at_the_root_says_what_this_is_and_an_unknown_path_leads_there(api: Api):
    page = await api.get("/")
    assert page.status_code == 200
    assert "This is Evergrant" in page.text
    for link in re.findall(r'href="([^"]+)"', page.text):
        assert (await api.get(link)).status_code in (200, 303), link  # 303: the console's login
    unknown = (await api.get("/integrations")).json()
    assert unknown["code"] == "not_found"
    assert "Nothing is served at this path" in unknown["detail"]
    assert "page at /" in unknown["detail"]
    shown = await api.get("/integrations", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (shown.status_code, "There is nothing here" in shown.text) == (404, True)
    assert "default-src 'none'" in shown.headers["content-security-policy"]
