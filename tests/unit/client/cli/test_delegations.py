"""`evergrant delegations`: what each command sends and shows."""

from typing import Any

import pytest
from evergrant.api.models import (
    Delegation,
    DelegationExplanation,
    DelegationRule,
    DelegationStop,
    ExplainedLink,
)

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

ACT = {"sub": "app:back", "act": {"sub": "app:front"}}
ONE = example(Delegation, id="dlg_1", act=ACT, subject="ann")
STOP = example(DelegationStop, id="dlg_1", delegations_ended=3)
LINK = example(ExplainedLink, app="front", reason="no_permit")
EXPLAINED = example(DelegationExplanation, chain=[LINK], stopped_by=[])
RULE = example(DelegationRule, name="web", actors=("front",), clients={"web-app": "front"})
PUT = {
    "issuer": "staff",
    "token_type": "id_token",
    "audience": "web-app",
    "claim": "email",
    "domains": ["example.com"],
    "may_act": False,
    "actors": ["back"],
    "clients": {"a=b": "front"},
}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        ("ls --app front --session dlg_1", "GET delegations", None, [ONE], "front > back"),
        ("get dlg_1", "GET delegations/dlg_1", None, ONE, "ann"),
        (
            "stop dlg_1 --session --reason x",
            "POST delegations/dlg_1/stop",
            {"reason": "x", "part": "session"},
            STOP,
            "3",
        ),
        ("explain dlg_1 con_1 read", "GET delegations/dlg_1/explain", None, EXPLAINED, "no_permit"),
        ("rules ls", "GET delegation-rules", None, [RULE], "web-app"),
        (
            "rules put web --issuer staff --audience web-app --email-domain example.com --actor back"
            " --client a=b=front",
            "PUT delegation-rules/web",
            PUT,
            RULE,
            "web",
        ),
        ("rules rm web", "DELETE delegation-rules/web", None, {}, ""),
    ],
)
def test_a_command_is_one_call_and_shows_its_result(
    command: Command, evergrant: ScriptedEvergrant, line: str, route: str, body: Any, answer: Any, shown: str
):
    path = route.replace(" ", " /v1/")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command("delegations", *line.split())
    assert (ended.status, ended.err) == (0, "")
    assert shown in ended.out
    (sent,) = evergrant.requests
    assert sent.body == body
