"""The clients' calls for webhooks, and `evergrant webhooks`."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant import BadRequest
from evergrant.cli import main
from evergrant.webhook_calls import Webhook, WebhookDelivery

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, problem

SECRET = "whsec_canary0123456789canary0123456789"


def a_webhook(**changes: Any) -> dict[str, Any]:
    return {
        "id": "whk_1",
        "name": "hooks",
        "url": "https://hooks.example.com/in",
        "events": ["connection.revoked"],
        "integration": "*",
        "disabled": False,
        "disabled_by": None,
        "failures": 0,
        "failing_since": None,
        "paused_until": None,
        "secret_changed_at": "2030-01-01T00:00:00Z",
        "previous_secret_until": None,
        "created_at": "2030-01-01T00:00:00Z",
        "changed_at": "2030-01-01T00:00:00Z",
        "revision": 1,
        **changes,
    }


def a_delivery(**changes: Any) -> dict[str, Any]:
    return {
        "id": "dlv_1",
        "event_id": "evt_1",
        "event_type": "connection.revoked",
        "status": "failed",
        "attempts": 10,
        "response_status": 500,
        "problem": "refused",
        "next_at": None,
        "created_at": "2030-01-01T00:00:00Z",
        "ended_at": "2030-01-04T00:00:00Z",
        **changes,
    }


async def test_a_webhook_is_put_and_its_secret_does_not_print(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("PUT /v1/webhooks/hooks", ScriptedResponse(201, a_webhook(secret=SECRET)))
    made = await caller.call(
        "put_webhook",
        "hooks",
        "https://hooks.example.com/in",
        events=("connection.revoked",),
        integration="crm",
    )
    assert isinstance(made, Webhook)
    assert made.secret == SECRET
    assert SECRET not in repr(made)
    assert evergrant.seen[0].body == {
        "url": "https://hooks.example.com/in",
        "events": ["connection.revoked"],
        "integration": "crm",
        "disabled": False,
    }
    await caller.call("put_webhook", "hooks", "https://hooks.example.com/in")
    assert evergrant.seen[1].body == {"url": "https://hooks.example.com/in", "disabled": False}


async def test_webhooks_are_read_page_by_page_and_deleted(caller: Caller, evergrant: ScriptedEvergrant):
    pages = [
        ScriptedResponse(200, {"items": [a_webhook()], "next_cursor": "more"}),
        ScriptedResponse(
            200, {"items": [a_webhook(name="b", disabled=True, disabled_by="gone")], "next_cursor": None}
        ),
    ]
    evergrant.script("GET /v1/webhooks", *pages)
    evergrant.script("GET /v1/webhooks/hooks", ScriptedResponse(200, a_webhook()))
    evergrant.script("DELETE /v1/webhooks/hooks", ScriptedResponse(204, ""))
    found = await caller.list("webhooks")
    assert [(it.name, it.disabled_by) for it in found] == [("hooks", None), ("b", "gone")]
    assert evergrant.seen[1].query == {"cursor": "more"}
    shown = await caller.call("webhook", "hooks")
    assert (shown.secret, shown.created_at) == (None, datetime(2030, 1, 1, tzinfo=UTC))
    assert await caller.call("delete_webhook", "hooks") is None


async def test_a_rotation_is_sent_with_a_key_so_that_a_retry_is_the_same_one(
    caller: Caller, evergrant: ScriptedEvergrant, no_pauses: None
):
    route = "POST /v1/webhooks/hooks/rotate-secret"
    evergrant.script(route, ScriptedResponse(drop=True), ScriptedResponse(200, a_webhook(secret=SECRET)))
    rotated = await caller.call("rotate_webhook_secret", "hooks", overlap=timedelta(0))
    assert rotated.secret == SECRET
    first, second = evergrant.seen
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == {"overlap": 0}


async def test_the_log_a_replay_and_a_ping(caller: Caller, evergrant: ScriptedEvergrant):
    at = "/v1/webhooks/hooks/deliveries"
    evergrant.script(f"GET {at}", ScriptedResponse(200, {"items": [a_delivery()], "next_cursor": None}))
    evergrant.script(f"POST {at}/dlv_1/replay", ScriptedResponse(202, a_delivery(status="pending")))
    evergrant.script(
        "POST /v1/webhooks/hooks/test", ScriptedResponse(202, a_delivery(event_type="webhook.ping"))
    )
    (entry,) = await caller.list("webhook_deliveries", "hooks", status="failed")
    assert isinstance(entry, WebhookDelivery)
    assert (entry.response_status, entry.problem, entry.attempts) == (500, "refused", 10)
    assert evergrant.seen[0].query == {"status": "failed"}
    assert (await caller.call("replay_webhook", "hooks", entry.id)).status == "pending"
    assert (await caller.call("test_webhook", "hooks")).event_type == "webhook.ping"


async def test_a_refused_url_is_the_callers_to_correct(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("PUT /v1/webhooks/hooks", problem(400, "BadRequest", "invalid_request", field="url"))
    with pytest.raises(BadRequest) as refused:
        await caller.call("put_webhook", "hooks", "https://10.0.0.1/")
    assert refused.value.context["field"] == "url"
    evergrant.script("DELETE /v1/webhooks/hooks", problem(404, "BadRequest", "not_found"))
    with pytest.raises(BadRequest):
        await caller.call("delete_webhook", "hooks")


async def run(evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("EVERGRANT_URL", evergrant.url)
    monkeypatch.setenv("EVERGRANT_API_KEY", "evg_key_canary")

    def command() -> int:
        with pytest.raises(SystemExit) as ended:
            main(["webhooks", *arguments])
        return int(ended.value.code or 0)

    return await asyncio.to_thread(command)


async def test_the_command_does_all_of_it(
    evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    at = "/v1/webhooks/hooks"
    evergrant.script(
        f"PUT {at}",
        ScriptedResponse(201, a_webhook(secret=SECRET)),
        ScriptedResponse(200, a_webhook(secret=None)),
    )
    evergrant.script("GET /v1/webhooks", ScriptedResponse(200, {"items": [a_webhook()], "next_cursor": None}))
    evergrant.script(f"GET {at}", ScriptedResponse(200, a_webhook()))
    evergrant.script(f"POST {at}/rotate-secret", ScriptedResponse(200, a_webhook(secret=SECRET)))
    evergrant.script(
        f"GET {at}/deliveries", ScriptedResponse(200, {"items": [a_delivery()], "next_cursor": None})
    )
    evergrant.script(
        f"POST {at}/deliveries/dlv_1/replay", ScriptedResponse(202, a_delivery(status="pending"))
    )
    evergrant.script(f"POST {at}/test", ScriptedResponse(202, a_delivery(event_type="webhook.ping")))
    evergrant.script(f"DELETE {at}", ScriptedResponse(204, ""))
    url = "https://hooks.example.com/in"

    async def said(*arguments: str) -> str:
        assert await run(evergrant, monkeypatch, *arguments) == 0
        return capsys.readouterr().out

    events = ("--event", "connection.revoked", "--event", "connection.failing")
    assert SECRET in await said("put", "hooks", url, *events, "--integration", "crm")
    assert evergrant.seen[0].body["events"] == ["connection.revoked", "connection.failing"]
    changed = await said("put", "hooks", url, "--disabled")
    assert "secret " not in changed
    assert evergrant.seen[1].body == {"url": url, "disabled": True}
    assert url in await said("ls")
    assert url in await said("list")
    assert "secret" not in json.loads(await said("get", "hooks", "-o", "json"))
    assert json.loads(await said("rotate", "hooks", "--overlap", "0", "-o", "json"))["secret"] == SECRET
    assert "refused" in await said("deliveries", "hooks", "--status", "failed")
    assert "pending" in await said("replay", "hooks", "dlv_1")
    assert "webhook.ping" in await said("test", "hooks")
    assert await said("delete", "hooks") == ""
