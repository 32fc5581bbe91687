"""`evergrant access-requests`, `evergrant access changes` and `evergrant apps put`."""

from typing import Any
from unittest.mock import ANY

import pytest
from evergrant import App
from evergrant.api.models import (
    AccessChange,
    AccessRequest,
    AuditRecord,
    LostAccess,
    LostUse,
    SimulatedUses,
    Simulation,
)

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

CHANGED = example(AccessChange, action="permit.put", detail={"app": "etl"}, before=None)
SIMULATED = example(
    Simulation, app="etl", would_lose=[example(LostAccess, connection_id="con_9", permit=None)]
)
REQUESTED = example(AccessRequest, id="req_1", permit={"integration": "crm"})
REQUEST = "POST access-requests/req_1"
ASK = "access-requests new crm token proxy --subject alice --scope read --hours 2 --reason audit"
ASKED_FOR = {
    "permit": {
        "integration": "crm",
        "actions": ["token", "proxy"],
        "subjects": ["alice"],
        "scope_ceiling": ["read"],
    },
    "reason": "audit",
    "lifetime": 7200,
}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("access changes", "GET access/changes", None, [CHANGED], "permit.put"),
        ("access simulate etl --without crm --days 1", "POST access/simulate", ANY, SIMULATED, "con_9"),
        (ASK, "POST access-requests", ASKED_FOR, REQUESTED, "req_1"),
        ("access-requests ls", "GET access-requests", None, [REQUESTED], "req_1"),
        ("access-requests approve req_1 --hours 1", f"{REQUEST}/approve", {"lifetime": 3600}, REQUESTED, ""),
        ("access-requests deny req_1 --note no", f"{REQUEST}/deny", {"note": "no"}, REQUESTED, "req_1"),
        ("access-requests withdraw req_1", f"{REQUEST}/withdraw", None, REQUESTED, "req_1"),
    ],
)
def test_a_command_is_one_call_and_shows_its_result(
    command: Command, evergrant: ScriptedEvergrant, line: str, route: str, body: Any, answer: Any, shown: str
):
    path = route.replace(" ", " /v1/")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command(*line.split())
    assert (ended.status, ended.err) == (0, "")
    assert shown in ended.out
    (sent,) = evergrant.requests
    assert sent.body == body


def test_a_simulation_says_which_leases_and_calls_would_be_refused(
    command: Command, evergrant: ScriptedEvergrant
):
    lost = example(LostUse, connection_id="con_9", request="DELETE /user/keys/7", uses=4)
    uses = example(SimulatedUses, judged=2000, complete=False, lost=4, would_lose=[lost])
    answer = example(Simulation, app="etl", would_lose=[], uses=uses, permits=[])
    evergrant.script("POST /v1/access/simulate", ScriptedResponse(200, answer))
    ended = command("access", "simulate", "etl", "--without", "crm")
    assert "Of the newest 2000 recorded leases and calls 4 would be refused." in ended.out
    assert "DELETE /user/keys/7" in ended.out


def test_the_audit_log_is_filtered(command: Command, evergrant: ScriptedEvergrant):
    record = example(AuditRecord, action="permit.put", by="app:boss", detail={})
    evergrant.script("GET /v1/audit", page(record))
    line = "audit --action permit.put --by app:boss --object per_1 --since 2026-05-01T00:00:00"
    ended = command(*line.split())
    assert (ended.status, "permit.put" in ended.out) == (0, True), ended.err
    (sent,) = evergrant.requests
    expected = {
        "action": "permit.put",
        "by": "app:boss",
        "object": "per_1",
        "since": "2026-05-01T00:00:00+00:00",
    }
    assert {name: sent.query[name] for name in expected} == expected
    refused = command("audit", "con_1", "--by", "app:boss")
    assert (refused.status != 0, "--object" in refused.err) == (True, True)


def test_an_app_is_changed_without_what_is_left_out(command: Command, evergrant: ScriptedEvergrant):
    web = example(App, name="web", return_to=["https://a/"], lease_limit=5)
    evergrant.script("GET /v1/apps/web", ScriptedResponse(200, web))
    evergrant.script("PUT /v1/apps/web", ScriptedResponse(200, web))
    command("apps", "put", "web", "--lease-limit", "9")
    command("apps", "put", "web", "--lease-limit", "0", "--return-to", "https://b/")
    bodies = [request.body for request in evergrant.requests if request.method == "PUT"]
    assert bodies == [
        {"disabled": False, "return_to": ["https://a/"], "lease_limit": 9},
        {"disabled": False, "return_to": ["https://b/"]},
    ]
