"""`evergrant overview`, `connections bulk` and `campaigns`: what each command sends and shows."""

from typing import Any

import pytest
from evergrant.api.models import (
    Attention,
    BulkConnection,
    BulkOrder,
    BulkPlan,
    Campaign,
    CampaignConnection,
    CampaignDetail,
    CampaignPlan,
    ConnectionTotals,
    Overview,
    PlannedWave,
)

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

TOTALS = example(ConnectionTotals, total=1204, complete=False)
PLAN = example(BulkPlan, action="revoke", confirm="crm", totals=TOTALS, how="One after another.")
ORDER = example(BulkOrder, id="blk_1", action="refresh", reason="INC-9", ended=3, selected=7)
CONNECTION = example(BulkConnection, connection_id="con_1", outcome="failed")
OPENED = {"action": "refresh", "reason": "INC-9"}
WAVE = example(PlannedWave, connections=50, subjects=49, leases=1204)
CAMPAIGN_PLAN = example(CampaignPlan, confirm="crm", connections=120, complete=True, waves=[WAVE])
CAMPAIGN = example(Campaign, id="inc_1", integration="crm", reason="OPS-9", end="keep")
DETAIL = example(CampaignDetail, id="inc_1", waves=[])
ASKED = example(CampaignConnection, connection_id="con_1", outcome="kept")
BEGUN = {"integration": "crm", "successor": "crm-2026", "reason": "OPS-9", "confirm": "crm"}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("plan revoke --integration crm", "GET /plan", None, PLAN, "at least 1,204 connections; to confirm"),
        ("ls", "GET ", None, [ORDER], "INC-9"),
        ("show blk_1", "GET /blk_1", None, ORDER, "blk_1"),
        ("pause blk_1", "POST /blk_1/pause", None, ORDER, "blk_1"),
        ("resume blk_1", "POST /blk_1/resume", None, ORDER, "blk_1"),
        ("connections blk_1 --outcome failed", "GET /blk_1/connections", None, [CONNECTION], "con_1"),
        ("start refresh --failing --reason INC-9", "POST ", {**OPENED, "failing": True}, ORDER, "blk_1"),
        (
            "start refresh --reason INC-9 --connection con_1 --connection con_2 --wait 60",
            "POST ",
            {**OPENED, "failing": False, "connections": ["con_1", "con_2"], "wait": 60},
            ORDER,
            "blk_1",
        ),
    ],
)
def test_each_command_sends_one_request(
    evergrant: ScriptedEvergrant, command: Command, line: str, route: str, body: Any, answer: Any, shown: str
):
    sends_one_request(evergrant, command, "connections bulk", line, route, body, answer, shown)


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("plan crm crm-2026", "GET /plan", None, CAMPAIGN_PLAN, "120 connections; to confirm: --confirm crm"),
        ("ls", "GET ", None, [CAMPAIGN], "OPS-9"),
        ("show inc_1", "GET /inc_1", None, DETAIL, "inc_1"),
        ("pause inc_1", "POST /inc_1/pause", None, CAMPAIGN, "inc_1"),
        ("resume inc_1", "POST /inc_1/resume", None, CAMPAIGN, "inc_1"),
        ("undo inc_1", "POST /inc_1/undo", None, CAMPAIGN, "inc_1"),
        ("end inc_1 --end stop", "POST /inc_1/end", {"end": "stop"}, CAMPAIGN, "inc_1"),
        ("connections inc_1 --outcome kept", "GET /inc_1/connections", None, [ASKED], "con_1"),
        (
            "start crm crm-2026 --reason OPS-9 --confirm crm --every 60 --remind 5 --remind 9 --end stop",
            "POST ",
            {**BEGUN, "every": 60, "remind": [5, 9], "end": "stop"},
            CAMPAIGN,
            "inc_1",
        ),
    ],
)
def test_each_command_of_a_campaign_sends_one_request(
    evergrant: ScriptedEvergrant, command: Command, line: str, route: str, body: Any, answer: Any, shown: str
):
    sends_one_request(evergrant, command, "campaigns", line, route, body, answer, shown)


def sends_one_request(
    evergrant: ScriptedEvergrant,
    command: Command,
    noun: str,
    line: str,
    route: str,
    body: Any,
    answer: Any,
    shown: str,
) -> None:
    path = route.replace(" ", f" /v1/{noun.replace(' ', '/')}")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command(*noun.split(), *line.split())
    assert ended.status == 0, ended.err
    assert shown in ended.out
    (request,) = evergrant.requests
    sent = request.body if request.body is None else {k: v for k, v in request.body.items() if v is not None}
    assert sent == body


def test_an_overview_is_tables_with_what_needs_somebody_first(evergrant: ScriptedEvergrant, command: Command):
    attention = example(Attention, integration="crm", code="client_rejected", connections=12)
    shown = example(Overview, attention=[attention], waiting=[], ends=[], integrations=[])
    evergrant.script("GET /v1/overview", ScriptedResponse(200, shown))
    ended = command("overview")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "needs somebody: 1"
    assert "client_rejected" in ended.out
    assert "ends within 30 days: nothing" in lines
