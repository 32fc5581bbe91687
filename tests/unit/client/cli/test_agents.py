"""`evergrant agents` and the calls of `evergrant approvals`: what each sends and shows."""

from datetime import timedelta
from typing import Any
from unittest.mock import ANY

import pytest
from evergrant.api.models import Agent, AgentStop, CallApproval, CoveredConnection, ReachedPermit

from tests.unit.client.conftest import Caller, Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

AGENT = example(Agent, name="support", sponsor="app:team")
REACHED = example(ReachedPermit, covered=[example(CoveredConnection)], stopped_by="agent_ended")
URL = "https://api.example/refunds"
CALLED = {"method": "POST", "url": URL, "body": None, "tool": None, "arguments": None}
ASKED = example(CallApproval, id="cap_1", state="waiting", call=CALLED)
HEADERS = [{"name": "Notion-Version", "value": "2022-06-28"}, {"name": "X-Own", "value": "1"}]
SHOWN = {"headers": [{"name": "notion-version", "value": "2022-06-28"}]}
WITH_HEADERS = example(CallApproval, id="cap_3", state="waiting", call={**CALLED, **SHOWN})
TOOL = example(CallApproval, id="cap_2", state="denied", call={"tool": "pay", "arguments": {"to": "bob"}})
WANTED = {"connection_id": "con_1", "method": "POST", "url": URL}
PUT = {"purpose": "mails", "ends_at": ANY, "sponsor": "app:team"}
STOPPED = example(AgentStop, agent="support", approvals_closed=3, finished_at="2026-01-01T00:00:00Z")
STOP = {"reason": "too much", "revoke_connections": True}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("agents ls", "GET agents", None, [AGENT], "app:team"),
        ("access reach support", "GET apps/support/reach", None, [REACHED], "Nothing now: its requests"),
        ("agents get support", "GET agents/support", None, AGENT, "app:team"),
        (
            "agents put support --purpose mails --days 2 --sponsor app:team",
            "PUT agents/support",
            PUT,
            AGENT,
            "",
        ),
        (
            f"approvals ask con_1 POST {URL} --reason x",
            "POST call-approvals",
            {**WANTED, "reason": "x"},
            ASKED,
            URL,
        ),
        (f"approvals use con_1 POST {URL}", "POST call-approvals/use", WANTED, ASKED, "cap_1"),
        (
            f"approvals ask con_1 POST {URL} --reason x -H Notion-Version:2022-06-28 --header X-Own:1",
            "POST call-approvals",
            {**WANTED, "headers": HEADERS, "reason": "x"},
            WITH_HEADERS,
            '"value": "2022-06-28"',
        ),
        (
            f"approvals use con_1 POST {URL} -H Notion-Version:2022-06-28 -H X-Own:1",
            "POST call-approvals/use",
            {**WANTED, "headers": HEADERS},
            WITH_HEADERS,
            "notion-version",
        ),
        ("approvals calls --state waiting", "GET call-approvals", None, [ASKED], "cap_1"),
        ("approvals show cap_2", "GET call-approvals/cap_2", None, TOOL, '{"to": "bob"}'),
        (
            "approvals approve cap_1 --note ok",
            "POST call-approvals/cap_1/approve",
            {"note": "ok"},
            ASKED,
            "cap_1",
        ),
        ("approvals deny cap_1", "POST call-approvals/cap_1/deny", {}, ASKED, "cap_1"),
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


def test_a_stop_waits_for_its_counts(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/agents/support/stop", ScriptedResponse(202, {**STOPPED, "finished_at": None}))
    evergrant.script("GET /v1/agents/support/stop", ScriptedResponse(200, STOPPED))
    ended = command("agents", "stop", "support", "--reason", "too much", "--revoke-connections")
    assert (ended.status, ended.err) == (0, "evergrant: support gets nothing any more\n")
    assert "3" in ended.out
    assert [it.body for it in evergrant.requests] == [STOP, None]


async def test_waiting_for_an_approval_polls_until_it_is_decided_or_time_is_up(
    caller: Caller, evergrant: ScriptedEvergrant
):
    decided = example(CallApproval, id="cap_1", state="approved")
    waits, every = ScriptedResponse(202, ASKED), timedelta(milliseconds=1)
    evergrant.script("GET /v1/call-approvals/cap_1", waits, waits, ScriptedResponse(200, decided))
    found = await caller.call("wait_for_approval", "cap_1", timedelta(minutes=1), every=every)
    assert (found.is_approved, len(evergrant.requests)) == (True, 3)
    evergrant.script("GET /v1/call-approvals/cap_1", waits)
    assert (await caller.call("wait_for_approval", "cap_1", timedelta(0), every=every)).is_waiting
