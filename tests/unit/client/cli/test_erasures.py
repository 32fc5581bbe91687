"""`evergrant connections erase`, `subjects`, `erasures` and `holds`: what each sends and shows."""

from typing import Any

import pytest
from evergrant.api.models import Erasure, LegalHold

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

DONE = example(Erasure, id="era_1", state="done", connections=2, finished_at="2026-01-01T00:00:00Z")
ORDERED = {**DONE, "state": "revoking", "finished_at": None}
HOLD = example(LegalHold, id="hld_1", reason="CASE-7")
WHY = {"reason": "INC-9"}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("subjects erase alice --reason INC-9", "POST erasures", {"subject": "alice", **WHY}, DONE, "done"),
        (
            "connections erase con_1 --reason INC-9",
            "POST erasures",
            {"connection_id": "con_1", **WHY},
            DONE,
            "2",
        ),
        ("erasures ls --subject alice", "GET erasures", None, [DONE], "era_1"),
        ("erasures get era_1", "GET erasures/era_1", None, DONE, "done"),
        ("holds ls", "GET legal-holds", None, [HOLD], "CASE-7"),
        (
            "holds put --subject alice --reason CASE-7 --until 2027-01-31T00:00:00",
            "POST legal-holds",
            {"subject": "alice", "tenant": False, "reason": "CASE-7", "until": "2027-01-31T00:00:00+00:00"},
            HOLD,
            "hld_1",
        ),
        (
            "holds put --tenant --reason CASE-7",
            "POST legal-holds",
            {"tenant": True, "reason": "CASE-7"},
            HOLD,
            "hld_1",
        ),
        ("holds end hld_1 --reason over", "POST legal-holds/hld_1/end", {"reason": "over"}, HOLD, "hld_1"),
    ],
)
def test_each_command_sends_one_request(
    evergrant: ScriptedEvergrant, command: Command, line: str, route: str, body: Any, answer: Any, shown: str
):
    path = route.replace(" ", " /v1/")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command(*line.split())
    assert ended.status == 0, ended.err
    assert shown in ended.out
    (request,) = evergrant.requests
    assert request.body == body


def test_an_erasure_is_waited_for_a_while(evergrant: ScriptedEvergrant, command: Command):
    evergrant.script("POST /v1/erasures", ScriptedResponse(202, ORDERED))
    evergrant.script("GET /v1/erasures/era_1", ScriptedResponse(200, ORDERED), ScriptedResponse(200, DONE))
    ended = command("subjects", "erase", "alice", "--reason", "INC-9")
    assert (ended.status, ended.err) == (0, "evergrant: era_1 is ordered; it can't be undone\n")
    assert "done" in ended.out
