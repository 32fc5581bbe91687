"""`evergrant incident`: what each command sends and shows, and the check of a report without a server."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.api.models import Incident, IncidentConnection, IncidentDetail, IncidentPlan
from evergrant.incident_report import ReportError, verify_report

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page, problem

INCIDENT = example(Incident, id="inc_1", reason="INC-9", state="working", ended=3, selected=7)
DETAIL = example(IncidentDetail, id="inc_1", state="working")
PLAN = example(IncidentPlan, confirm="crm", connections=7, exact=False)
CONNECTION = example(IncidentConnection, connection_id="con_1", outcome="unknown")
BREACH = {"kind": "breach", "integration": "crm"}
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def key_of(private: Ed25519PrivateKey, name: str = "evergrant.example") -> tuple[str, bytes]:
    public = b"\x01" + private.public_key().public_bytes_raw()
    id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    return f"{name}+{id.hex()}+{base64.b64encode(public).decode()}", id


def report(outcomes: tuple[str, ...] = ("confirmed", "unknown"), **changes: Any) -> list[bytes]:
    """As a worker writes it; `changes` are of the header."""
    header = {"report": "evergrant-incident/v1", "tenant": "acme", "incident": "inc_1", "kind": "breach"}
    counts = {outcome: outcomes.count(outcome) for outcome in outcomes}
    lines: list[Any] = [
        header | changes,
        *({"connection": f"con_{number}", "outcome": outcome} for number, outcome in enumerate(outcomes)),
        {"reported": len(outcomes), "outcomes": counts},
    ]
    raw, digest = [json.dumps(line).encode() for line in lines], bytes(32)
    for line in raw:
        digest = hashlib.sha256(digest + line).digest()
    parts = (
        "evergrant-incident/v1",
        "acme",
        "inc_1",
        str(len(raw)),
        base64.b64encode(digest).decode(),
        "now",
    )
    text = "".join(f"{part}\n" for part in parts)
    key, id = key_of(PRIVATE)
    signature = base64.b64encode(id + PRIVATE.sign(text.encode())).decode()
    note = {"note": f"{text}\n\u2014 evergrant.example {signature}\n", "key": key}
    return [line + b"\n" for line in (*raw, json.dumps(note).encode())]


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("incident plan breach --integration crm", "GET incidents/plan", None, PLAN, "--confirm crm"),
        (
            "incident start breach --integration crm --confirm crm --reason INC-9 --wait 60",
            "POST incidents",
            {**BREACH, "confirm": "crm", "reason": "INC-9", "wait": 60, "roots_replaced": False},
            INCIDENT,
            "inc_1",
        ),
        ("incident ls", "GET incidents", None, [INCIDENT], "INC-9"),
        ("incident show inc_1", "GET incidents/inc_1", None, DETAIL, "working"),
        ("incident pause inc_1", "POST incidents/inc_1/pause", None, INCIDENT, "inc_1"),
        ("incident resume inc_1", "POST incidents/inc_1/resume", None, INCIDENT, "inc_1"),
        (
            "incident connections inc_1 --outcome unknown",
            "GET incidents/inc_1/connections",
            None,
            [CONNECTION],
            "con_1",
        ),
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


def test_a_report_that_is_not_done_is_an_error(evergrant: ScriptedEvergrant, command: Command):
    evergrant.script("GET /v1/incidents/inc_1/report", ScriptedResponse(202, INCIDENT))
    ended = command("incident", "report", "inc_1")
    assert (ended.status, "3 of 7" in ended.err) == (1, True)


def test_a_report_is_fetched_page_by_page(evergrant: ScriptedEvergrant, command: Command, tmp_path: Path):
    lines, path = report(), "GET /v1/incidents/inc_1/report"
    more = {"x-evergrant-next": "con_0"}
    evergrant.script(
        path,
        ScriptedResponse(200, b"".join(lines[:2]).decode(), more),
        ScriptedResponse(200, b"".join(lines[2:]).decode()),
    )
    file = tmp_path / "report.jsonl"
    assert command("incident", "report", "inc_1", "--out", str(file)).status == 0
    assert file.read_bytes() == b"".join(lines)
    assert [request.query.get("after", "") for request in evergrant.requests] == ["", "con_0"]


def test_a_report_that_breaks_off_leaves_no_file(
    evergrant: ScriptedEvergrant, command: Command, tmp_path: Path
):
    more = {"x-evergrant-next": "con_0"}
    refused = problem(403, "denied", "not_permitted")
    evergrant.script(
        "GET /v1/incidents/inc_1/report", ScriptedResponse(200, report()[0].decode(), more), refused
    )
    file = tmp_path / "report.jsonl"
    assert command("incident", "report", "inc_1", "--out", str(file)).status == 1
    assert not file.exists()


def test_a_report_verifies_with_the_key_that_was_kept(command: Command, tmp_path: Path):
    file = tmp_path / "report.jsonl"
    file.write_bytes(b"".join(report()))
    key, _ = key_of(PRIVATE)
    ended = command("incident", "verify", str(file), "--key", key)
    assert (ended.status, "inc_1" in ended.out, ended.err) == (0, True, "")
    alone = command("incident", "verify", str(file))
    assert (alone.status, "--key" in alone.err) == (0, True)
    another, _ = key_of(Ed25519PrivateKey.generate())
    assert command("incident", "verify", str(file), "--key", another).status == 1


def test_a_report_without_connections_verifies():
    assert verify_report(report(())).connections == 0


def edited(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b"unknown", b"confirmed") for line in lines]


def without_a_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[3:]]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def cut(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def of_another_incident(lines: list[bytes]) -> list[bytes]:
    return [*report(incident="inc_2")[:-1], lines[-1]]


def with_a_line_of_garbage(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"[]\n", *lines[1:]]


def signed_by_another_key(lines: list[bytes]) -> list[bytes]:
    """The note is its own, and names a key that hasn't signed it."""
    note = json.loads(lines[-1])
    note["key"], _ = key_of(Ed25519PrivateKey.generate())
    return [*lines[:-1], json.dumps(note).encode()]


@pytest.mark.parametrize(
    "change",
    [
        edited,
        without_a_line,
        swapped,
        cut,
        of_another_incident,
        with_a_line_of_garbage,
        signed_by_another_key,
    ],
)
def test_a_changed_report_is_refused(change: Any):
    with pytest.raises(ReportError):
        verify_report(change(report()))
