"""`evergrant permits`: each command is one call."""

from typing import Any

import pytest
from evergrant.calls.permits import Permit

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page

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


@pytest.mark.parametrize(
    ("line", "route", "body", "answer"),
    [
        ("permits ls etl", "GET apps/etl/permits", None, [CRM_PERMIT]),
        ("permits get etl crm", "GET apps/etl/permits/crm", None, CRM_PERMIT),
        (ALLOW, "PUT apps/etl/permits/crm", ALLOWED, CRM_PERMIT),
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
