"""`evergrant campaigns`: what each command sends and shows."""

from typing import Any

import pytest
from evergrant.api.models import Campaign, CampaignConnection, CampaignDetail, CampaignPlan, PlannedWave

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

WAVE = example(PlannedWave, connections=50, subjects=49, leases=1204)
PLAN = example(CampaignPlan, confirm="crm", connections=120, complete=True, waves=[WAVE])
CAMPAIGN = example(Campaign, id="inc_1", integration="crm", reason="OPS-9", end="keep")
DETAIL = example(CampaignDetail, id="inc_1", waves=[])
CONNECTION = example(CampaignConnection, connection_id="con_1", outcome="kept")
BEGUN = {"integration": "crm", "successor": "crm-2026", "reason": "OPS-9", "confirm": "crm"}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("plan crm crm-2026", "GET /plan", None, PLAN, "120 connections; to confirm: --confirm crm"),
        ("ls", "GET ", None, [CAMPAIGN], "OPS-9"),
        ("show inc_1", "GET /inc_1", None, DETAIL, "inc_1"),
        ("pause inc_1", "POST /inc_1/pause", None, CAMPAIGN, "inc_1"),
        ("resume inc_1", "POST /inc_1/resume", None, CAMPAIGN, "inc_1"),
        ("undo inc_1", "POST /inc_1/undo", None, CAMPAIGN, "inc_1"),
        ("end inc_1 --end stop", "POST /inc_1/end", {"end": "stop"}, CAMPAIGN, "inc_1"),
        ("connections inc_1 --outcome kept", "GET /inc_1/connections", None, [CONNECTION], "con_1"),
        (
            "start crm crm-2026 --reason OPS-9 --confirm crm --every 60 --remind 5 --remind 9 --end stop",
            "POST ",
            {**BEGUN, "every": 60, "remind": [5, 9], "end": "stop"},
            CAMPAIGN,
            "inc_1",
        ),
    ],
)
def test_each_command_sends_one_request(
    evergrant: ScriptedEvergrant, command: Command, line: str, route: str, body: Any, answer: Any, shown: str
):
    path = route.replace(" ", " /v1/campaigns")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command("campaigns", *line.split())
    assert ended.status == 0, ended.err
    assert shown in ended.out
    (request,) = evergrant.requests
    sent = request.body if request.body is None else {k: v for k, v in request.body.items() if v is not None}
    assert sent == body
