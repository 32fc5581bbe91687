"""`evergrant integrations health`: a line a cause, and what can't be decided yet."""

import json

from evergrant.api.models import FailureCause, IntegrationHealth, RefusalWords

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example


def test_what_fails_at_an_integration_is_a_line_a_cause(command: Command, evergrant: ScriptedEvergrant):
    words = example(RefusalWords, status=401, error="invalid_client", description="Unknown secret.")
    cause = {"code": "client_rejected", "connections": 3, "repairer": "integration_admin", "is_sole": False}
    cause = example(FailureCause, **cause, next_step="try the refresh again", provider_said=[words])
    sole = example(FailureCause, code="provider_error", is_sole=True, provider_said=[])
    shown = example(IntegrationHealth, name="crm", active=30, failing=3, complete=False, causes=[cause, sole])
    evergrant.script("GET /v1/integrations/crm/health", ScriptedResponse(200, shown))
    ended = command("integrations", "health", "crm")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert "active           at least 30" in lines
    assert "failing          3" in lines
    (line,) = [line for line in lines if line.startswith("client_rejected")]
    assert line.split()[1:3] == ["3", "integration_admin"]
    assert "401 invalid_client Unknown secret." in line
    assert any("can't be decided yet" in line for line in lines if line.startswith("provider_error"))
    as_json = json.loads(command("integrations", "health", "crm", "-o", "json").out)
    assert [cause["code"] for cause in as_json["causes"]] == ["client_rejected", "provider_error"]
