"""An admin's calls: integrations, a tenant's own provider definitions, webhooks, and request signatures."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant import BadRequest, ProtocolError
from evergrant.calls.integrations import Finding, Integration, ProviderVersion
from evergrant.calls.webhooks import Webhook, WebhookDelivery

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page, problem

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


async def test_an_integration_is_put_read_and_deleted(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("PUT /v1/integrations/crm", ScriptedResponse(201, an_integration()))
    evergrant.script("GET /v1/integrations/crm", ScriptedResponse(200, an_integration()))
    evergrant.script("GET /v1/integrations", page(an_integration()))
    evergrant.script("DELETE /v1/integrations/crm", ScriptedResponse(204, ""))
    made = await caller.call("put_integration", "crm", **INTEGRATION)
    assert isinstance(made, Integration)
    assert made.members["a_later_member"] is True
    assert evergrant.requests[0].body == INTEGRATION
    assert (await caller.call("integration", "crm")).redirect_uri.endswith("/int_1")
    assert [found.name for found in await caller.list("integrations")] == ["crm"]
    assert await caller.call("delete_integration", "crm") is None


async def test_a_client_secret_rotates_and_rolls_back(caller: Caller, evergrant: ScriptedEvergrant):
    rotated = ScriptedResponse(200, an_integration(previous_secret_until="2030-01-01T00:00:00Z"))
    evergrant.script(
        "POST /v1/integrations/crm/rotate-secret", rotated, ScriptedResponse(200, an_integration())
    )
    changed = await caller.call("rotate_client_secret", "crm", SECRET, overlap=timedelta(hours=1))
    assert changed.previous_secret_until is not None
    assert evergrant.requests[0].body == {"client_secret": SECRET, "overlap_s": 3600}
    assert "idempotency-key" in evergrant.requests[0].headers
    await caller.call("roll_client_secret_back", "crm")
    assert evergrant.requests[1].body == {"roll_back": True}


async def test_a_provider_definition_is_proposed_and_decided(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version(state="checking")))
    evergrant.script(f"GET {VERSION}/versions", page(a_version()))
    for decision in ("approve", "reject", "roll-back"):
        evergrant.script(f"POST {VERSION}/{decision}", ScriptedResponse(200, a_version(share=0.05)))
    proposed = await caller.call("propose_provider", {"name": "acme-crm"}, rollout={"shares": [1]})
    assert (proposed.state, proposed.findings) == ("checking", (Finding("hosts", "warning", "a new host"),))
    assert evergrant.requests[0].body == {"definition": {"name": "acme-crm"}, "rollout": {"shares": [1]}}
    assert [found.version for found in await caller.list("provider_versions", "acme-crm")] == [1]
    await caller.call("approve_provider", "acme-crm", 1, accept_hosts=True)
    assert evergrant.requests[-1].body == {"version": 1, "accept_hosts": True}
    await caller.call("reject_provider", "acme-crm", 1, "no")
    assert (await caller.call("roll_provider_back", "acme-crm", 1, "tickets")).share == 0.05
    assert evergrant.requests[-1].body == {"version": 1, "reason": "tickets"}


async def test_a_webhook_is_put_and_repr_hides_its_secret(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"PUT {HOOK}", ScriptedResponse(201, a_webhook(secret=SECRET)))
    made = await caller.call("put_webhook", "hooks", URL, events=("connection.revoked",), integration="crm")
    assert isinstance(made, Webhook)
    assert made.secret == SECRET
    assert SECRET not in repr(made)
    expected = {"url": URL, "events": ["connection.revoked"], "integration": "crm", "disabled": False}
    assert evergrant.requests[0].body == expected
    await caller.call("put_webhook", "hooks", URL)
    assert evergrant.requests[1].body == {"url": URL, "disabled": False}


async def test_webhooks_are_listed_page_by_page_and_deleted(caller: Caller, evergrant: ScriptedEvergrant):
    second = a_webhook(name="b", disabled=True, disabled_by="gone")
    evergrant.script("GET /v1/webhooks", page(a_webhook(), next_cursor="more"), page(second))
    evergrant.script(f"GET {HOOK}", ScriptedResponse(200, a_webhook()))
    evergrant.script(f"DELETE {HOOK}", ScriptedResponse(204, ""))
    found = await caller.list("webhooks")
    assert [(webhook.name, webhook.disabled_by) for webhook in found] == [("hooks", None), ("b", "gone")]
    assert evergrant.requests[1].query == {"cursor": "more"}
    shown = await caller.call("webhook", "hooks")
    assert (shown.secret, shown.created_at) == (None, datetime(2030, 1, 1, tzinfo=UTC))
    assert await caller.call("delete_webhook", "hooks") is None


async def test_a_retried_rotation_has_the_same_idempotency_key(
    caller: Caller, evergrant: ScriptedEvergrant, no_pauses: None
):
    rotated = ScriptedResponse(200, a_webhook(secret=SECRET))
    evergrant.script(f"POST {HOOK}/rotate-secret", ScriptedResponse(drop=True), rotated)
    assert (await caller.call("rotate_webhook_secret", "hooks", overlap=timedelta(0))).secret == SECRET
    first, second = evergrant.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == {"overlap": 0}


async def test_deliveries_are_listed_replayed_and_tested(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"GET {HOOK}/deliveries", page(a_delivery()))
    replayed = ScriptedResponse(202, a_delivery(status="pending"))
    evergrant.script(f"POST {HOOK}/deliveries/dlv_1/replay", replayed)
    evergrant.script(f"POST {HOOK}/test", ScriptedResponse(202, a_delivery(event_type="webhook.ping")))
    (entry,) = await caller.list("webhook_deliveries", "hooks", status="failed")
    assert isinstance(entry, WebhookDelivery)
    assert (entry.response_status, entry.problem, entry.attempts) == (500, "refused", 1)
    assert evergrant.requests[0].query == {"status": "failed"}
    assert (await caller.call("replay_webhook", "hooks", entry.id)).status == "pending"
    assert (await caller.call("test_webhook", "hooks")).event_type == "webhook.ping"


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
