"""`evergrant permits`: each command is one call."""

import json
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from evergrant.api.models import Permit

from evergrant_server.api.apps.permits import PermitBody
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import (
    ScriptedEvergrant,
    ScriptedResponse,
    example,
    page,
    problem,
)

CRM_PERMIT = example(Permit, name="crm", subjects=["team-*"])
ALLOW = "permits put etl crm --integration crm --action token --action connect --subject team-* --scope read"
ALLOW += " --source 10.1.0.0/16 --exact-scopes --expires 2027-01-01T00:00:00+00:00 --owner data"
ALLOWED: dict[str, Any] = {
    **{"integration": "crm", "actions": ["token", "connect"], "effect": "allow", "mode": "enforce"},
    **{"provider": "*", "subjects": ["team-*"], "sources": ["10.1.0.0/16"], "scope_ceiling": ["read"]},
    **{"exact_scopes": True, "expires_at": "2027-01-01T00:00:00+00:00", "owner": "data"},
    **{"purpose": "", "reason": ""},
}
DENY = "permits put etl no --integration * --action export --deny --observe --scope write --provider slack"
DENIED: dict[str, Any] = {
    **{"integration": "*", "actions": ["export"], "effect": "deny", "mode": "observe", "provider": "slack"},
    **{"subjects": ["*"], "scopes": ["write"], "exact_scopes": False},
    **{"owner": "", "purpose": "", "reason": ""},
}

DEMAND = (
    "permits put etl writes --integration crm --action proxy --method POST --tool pay --call-approval"
    " --priority high"
)
DEMANDED: dict[str, Any] = {
    **{
        "integration": "crm",
        "actions": ["proxy"],
        "methods": ["POST"],
        "tools": ["pay"],
        "call_approval": True,
        "priority": "high",
    },
    **{"effect": "allow", "mode": "enforce", "provider": "*", "subjects": ["*"], "exact_scopes": False},
    **{"owner": "", "purpose": "", "reason": ""},
}

PAGE = Path(__file__).parents[4] / "docs/guide/permits.md"


def test_the_page_says_the_same_by_curl_and_by_command(command: Command, evergrant: ScriptedEvergrant):
    curl, commands = re.findall(r"^```\n(.*?)\n```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    body = json.loads(curl[curl.index("{") : curl.rindex("}") + 1])
    put, ls, rm = (shlex.split(line) for line in commands.replace("\\\n", "").splitlines())
    evergrant.script("PUT /v1/apps/sync/permits/crm", ScriptedResponse(200, CRM_PERMIT))
    evergrant.script("GET /v1/apps/sync/permits", page(CRM_PERMIT))
    evergrant.script("DELETE /v1/apps/sync/permits/crm", ScriptedResponse(204))
    assert [command(*line[1:]).status for line in (put, ls, rm)] == [0, 0, 0]
    sent = evergrant.requests[0].body
    assert datetime.fromisoformat(sent.pop("expires_at")) == datetime.fromisoformat(body.pop("expires_at"))
    assert sent.items() >= body.items()
    assert PermitBody.model_validate(body) == PermitBody.model_validate(sent)


@pytest.mark.parametrize(
    ("line", "route", "body", "answer"),
    [
        ("permits ls etl", "GET apps/etl/permits", None, [CRM_PERMIT]),
        ("permits get etl crm", "GET apps/etl/permits/crm", None, CRM_PERMIT),
        (ALLOW, "PUT apps/etl/permits/crm", ALLOWED, CRM_PERMIT),
        (DEMAND, "PUT apps/etl/permits/writes", DEMANDED, CRM_PERMIT),
        (DENY, "PUT apps/etl/permits/no", DENIED, CRM_PERMIT),
        ("permits rm etl crm", "DELETE apps/etl/permits/crm", None, None),
    ],
)
def test_a_command_about_permits_is_one_call(
    command: Command, evergrant: ScriptedEvergrant, line: str, route: str, body: Any, answer: Any
):
    path = route.replace(" ", " /v1/")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command(*line.split())
    assert (ended.status, ended.err) == (0, "")
    assert ("team-*" in ended.out) is (answer is not None)
    (sent,) = evergrant.requests
    assert sent.body == body


STANDS = {"effect": "allow", "integration": "crm", "subjects": ["alice"], "actions": ["token"]}
LIMITS = {"scope_ceiling": ["read"], "sources": ["10.1.0.0/16"], "owner": "data", "expires_at": None}
PUT, GET = "PUT /v1/apps/report/permits/crm", "GET /v1/apps/report/permits/crm"


@pytest.mark.parametrize(
    ("flags", "subjects", "actions"),
    [
        (("--subject", "bob"), ["alice", "bob"], ["token"]),
        (("--subject", "bob", "--action", "token"), ["alice", "bob"], ["token"]),
        (("--subject", "alice", "--action", "connect"), ["alice"], ["token", "connect"]),
    ],
)
def test_a_permit_of_the_same_name_keeps_what_it_allows(
    command: Command, evergrant: ScriptedEvergrant, flags: tuple[str, ...], subjects: Any, actions: Any
):
    """A printed repair for bob takes nothing from alice."""
    evergrant.script(GET, ScriptedResponse(200, example(Permit, name="crm", **STANDS, **LIMITS)))
    evergrant.script(PUT, ScriptedResponse(200, CRM_PERMIT))
    assert command("apps", "permit", "report", "crm", *flags).status == 0
    (sent,) = (each.body for each in evergrant.requests if each.method == "PUT")
    assert (sent["subjects"], sent["actions"]) == (subjects, actions)
    assert {name: sent.get(name) for name in LIMITS} == LIMITS


@pytest.mark.parametrize(
    "flags",
    [
        ("--subject", "bob", "--action", "admin"),  # which alice would have too
        ("--subject", "bob", "--scope", "write"),
        ("--subject", "bob", "--name", "other"),  # which is for another integration
    ],
)
def test_a_permit_is_replaced_on_demand_alone(
    command: Command, evergrant: ScriptedEvergrant, flags: tuple[str, ...]
):
    row = example(Permit, name="crm", **STANDS, **LIMITS)
    evergrant.script(GET, ScriptedResponse(200, row))
    elsewhere = {**row, "name": "other", "integration": "hub"}
    evergrant.script(GET.replace("crm", "other"), ScriptedResponse(200, elsewhere))
    for put in (PUT, PUT.replace("crm", "other")):
        evergrant.script(put, ScriptedResponse(200, CRM_PERMIT))
    refused = command("apps", "permit", "report", "crm", *flags)
    assert (refused.status, "for alice with read (" in refused.err, "--replace" in refused.err) == (
        1,
        True,
        True,
    )
    assert [each.method for each in evergrant.requests if each.method == "PUT"] == []
    assert command("apps", "permit", "report", "crm", *flags, "--replace").status == 0
    assert evergrant.requests[0].method == "GET"
    (sent,) = (each.body for each in evergrant.requests if each.method == "PUT")
    assert sent["subjects"] == ["bob"]


def test_the_first_permit_connects_and_leases(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script(GET, problem(404, "BadRequest", "not_found"))
    evergrant.script(PUT, ScriptedResponse(201, CRM_PERMIT))
    command("apps", "permit", "report", "crm", "--subject", "alice")
    assert evergrant.requests[1].body["actions"] == ["token", "connect"]
