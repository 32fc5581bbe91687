"""`evergrant access-requests` and `evergrant access changes`: one call each, and what it shows."""

from typing import Any
from unittest.mock import ANY

import pytest
from evergrant.api.models import AccessChange, AccessRequest, LostAccess, Simulation

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
