"""An admin's calls: integrations, a tenant's own provider definitions, webhooks, and request signatures."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant import BadRequest, ProtocolError
from evergrant.calls.integrations import Finding, Integration, ProviderVersion
from evergrant.calls.webhooks import Webhook, WebhookDelivery

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, problem

SECRET = "canary-secret-0123456789"
INTEGRATION = {"provider": "gitlab", "client_id": "c-1", "client_secret": SECRET}
VERSION = "/v1/providers/acme-crm"
HOOK = "/v1/webhooks/hooks"
URL = "https://hooks.example.com/in"


def an_integration(**changes: Any) -> dict[str, Any]:
    members = {"name": "crm", "redirect_uri": "https://e/oauth/callback/int_1", "a_later_member": True}
    return example(Integration, **(members | changes))


def a_version(**changes: Any) -> dict[str, Any]:
    findings = [{"check": "hosts", "level": "warning", "detail": "a new host"}]
    return example(ProviderVersion, **({"name": "acme-crm", "findings": findings} | changes))


def a_webhook(**changes: Any) -> dict[str, Any]:
    return example(Webhook, **({"name": "hooks", "url": URL} | changes))


def a_delivery(**changes: Any) -> dict[str, Any]:
    members = {"id": "dlv_1", "status": "failed", "response_status": 500, "problem": "refused"}
    return example(WebhookDelivery, **(members | changes))


async def test_members_are_read_by_their_types(caller: Caller, evergrant: ScriptedEvergrant):
    until = an_integration(previous_secret_until="2030-01-01T00:00:00Z")
    evergrant.script("GET /v1/integrations/crm", ScriptedResponse(200, until))
    found = await caller.call("integration", "crm")
    assert isinstance(found, Integration)
    assert (found.members["a_later_member"], found.redirect_uri[-5:]) == (True, "int_1")
    assert found.previous_secret_until == datetime(2030, 1, 1, tzinfo=UTC)
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version()))
    proposed = await caller.call("propose_provider", {"name": "acme-crm"})
    assert proposed.findings == (Finding("hosts", "warning", "a new host"),)


async def test_repr_hides_the_secret_of_a_webhook(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"PUT {HOOK}", ScriptedResponse(201, a_webhook(secret=SECRET)))
    made = await caller.call("put_webhook", "hooks", URL)
    assert (made.secret, SECRET in repr(made)) == (SECRET, False)


async def test_a_retried_rotation_has_the_same_idempotency_key(
    caller: Caller, evergrant: ScriptedEvergrant, no_pauses: None
):
    rotated = ScriptedResponse(200, a_webhook(secret=SECRET))
    evergrant.script(f"POST {HOOK}/rotate-secret", ScriptedResponse(drop=True), rotated)
    assert (await caller.call("rotate_webhook_secret", "hooks", overlap=timedelta(0))).secret == SECRET
    first, second = evergrant.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == {"overlap": 0}


async def test_a_refused_field_is_named_in_the_context(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"PUT {HOOK}", problem(400, "BadRequest", "invalid_request", field="url"))
    with pytest.raises(BadRequest) as refused:
        await caller.call("put_webhook", "hooks", "https://10.0.0.1/")
    assert refused.value.context["field"] == "url"


@pytest.mark.parametrize("form", [{"a": "1"}, [("a", "1")]])
async def test_a_signature_is_the_headers_of_one_request(
    caller: Caller, evergrant: ScriptedEvergrant, form: object
):
    body = {"headers": {"Authorization": "OAuth x"}, "generation": 3, "connection_id": "con_1"}
    url, route = "https://api.example/1?q=a%20b", "POST /v1/connections/con_1/signatures"
    evergrant.script(route, ScriptedResponse(200, body))
    made = await caller.call("sign", "con_1", "post", url, form)
    assert (made.headers, made.generation) == ({"Authorization": "OAuth x"}, 3)
    assert "OAuth" not in repr(made)
    assert evergrant.requests[0].body == {"method": "POST", "url": url, "form": [["a", "1"]]}
    evergrant.script(route, ScriptedResponse(200, body | {"headers": {"Authorization": 7}}))
    with pytest.raises(ProtocolError):
        await caller.call("sign", "con_1", "GET", url)
