"""`/v1/webhooks` over HTTP: what may be registered, what is shown once, what can be sent by hand."""

import logging
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.events import DEFAULT_EVENTS
from evergrant_server.core.ids import DeliveryId
from evergrant_server.core.messages.maintenance import WakeWebhook
from evergrant_server.core.webhooks import DeliveryProblem, DeliveryStatus, DisabledBy, Webhook
from evergrant_server.store.database.rows import fetch_all
from evergrant_server.store.webhooks import WebhookRow
from tests.fakes.api import TENANT, Api

URL = "https://hooks.example.com/in?token=canary-in-the-url"


async def put(api: Api, key: str, name: str = "hooks", **body: Any) -> httpx2.Response:
    return await api.call("PUT", f"/v1/webhooks/{name}", key, json={"url": URL, **body})


async def stored(api: Api, name: str = "hooks") -> Webhook:
    async with api.worker.read() as tx:
        found = await tx.webhooks.by_name(TENANT, name)
    assert found is not None
    return found


async def change(api: Api, webhook: Webhook) -> None:
    """What a worker writes."""
    async with api.worker.write() as tx:
        await tx.webhooks.replace(webhook, expected=webhook.revision)


async def secrets(api: Api) -> list[str]:
    webhook = await stored(api)
    async with api.worker.read() as tx:
        return [it.reveal() for it in await tx.webhooks.signing_secrets(webhook, api.clock.now())]


async def wakes(api: Api) -> list[WakeWebhook]:
    return [WakeWebhook.model_validate(it.payload) for it in await api.outbox()]


async def test_the_secret_is_shown_once(api: Api, admin: str):
    made = await put(api, admin)
    assert made.status_code == 201
    secret = made.json()["secret"]
    assert [secret] == await secrets(api)
    assert made.json()["events"] == [it.value for it in DEFAULT_EVENTS]
    changed = await put(api, admin, events=["connection.refreshed", "connection.refreshed"])
    assert (changed.status_code, changed.json()["secret"]) == (200, None)
    assert changed.json()["events"] == ["connection.refreshed"]
    for path in ("/v1/webhooks/hooks", "/v1/webhooks", "/v1/audit"):
        answer = await api.get(path, admin)
        assert answer.status_code == 200
        assert secret not in answer.text
        assert "whsec_" not in answer.text
    assert [secret] == await secrets(api)
    log = (await api.get("/v1/audit", admin)).text
    assert ("https://hooks.example.com" in log, "canary-in-the-url" in log) == (True, False)


async def test_only_the_row_and_its_admins_see_the_query_of_a_url(
    api: Api, admin: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    await put(api, admin)
    await put(api, admin, url=f"{URL}&again=1")
    await api.post("/v1/webhooks/hooks/test", admin)
    await put(api, admin, url="https://canary-in-the-url:pw@hooks.example.com/")
    seen = [await api.records(), await api.outbox(), caplog.text, repr(await stored(api))]
    assert "canary-in-the-url" not in str(seen)


async def test_the_query_of_a_url_is_sealed_and_shown_masked(api: Api, admin: str):
    """A URL that comes back masked, or whole, is no other URL."""
    made = await put(api, admin)
    masked = made.json()["url"]
    assert masked == "https://hooks.example.com/in?***"
    assert (await api.get("/v1/webhooks", admin)).json()["items"][0]["url"] == masked
    async with api.worker.read() as tx:
        rows = await fetch_all(tx.connection, select(WebhookRow))
    assert "canary-in-the-url" not in str(rows)
    await api.outbox()
    for again, whole in ((masked, URL), (URL, URL), (f"{URL}2", f"{URL}2"), (masked, f"{URL}2")):
        assert (await put(api, admin, url=again)).json()["url"] == masked
        async with api.worker.read() as tx:
            assert (await tx.webhooks.whole_url(await stored(api))).reveal() == whole
    assert len(await wakes(api)) == 1, "one change of the URL"
    plain = "https://hooks.example.com/in"
    assert (await put(api, admin, url=plain)).json()["url"] == plain
    async with api.worker.read() as tx:
        assert (await tx.webhooks.whole_url(await stored(api))).reveal() == plain


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/",
        "https://inner.localhost/",
        "https://hooks.example.com:22/",
        "https://user:pass@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com\\@evil.example/",
        "https:///in",
        "javascript:alert(1)",
        "hooks.example.com",
        "",
    ],
)
async def test_a_url_that_may_not_be_called_is_refused_at_registration(api: Api, admin: str, url: str):
    answer = await put(api, admin, url=url)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["field"] == "url"
    assert (await api.get("/v1/webhooks", admin)).json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"events": []},
        {"events": ["connection.exploded"]},
        {"events": ["webhook.ping"]},
        {"integration": "Not A Name"},
    ],
)
async def test_what_else_is_refused(api: Api, admin: str, body: dict[str, Any]):
    assert (await put(api, admin, **body)).status_code == 400


async def test_rotation_overlaps_or_not_at_all(api: Api, admin: str):
    first = (await put(api, admin)).json()["secret"]
    once = {"headers": {"Idempotency-Key": "rotate-1"}}
    second = (await api.post("/v1/webhooks/hooks/rotate-secret", admin, **once)).json()
    assert (await api.post("/v1/webhooks/hooks/rotate-secret", admin, **once)).json() == second
    assert await secrets(api) == [second["secret"], first]
    assert second["previous_secret_until"] is not None
    api.clock.advance(timedelta(days=1).total_seconds())
    assert await secrets(api) == [second["secret"]]
    third = (await api.post("/v1/webhooks/hooks/rotate-secret", admin, {"overlap": 0})).json()
    assert third["previous_secret_until"] is None
    assert await secrets(api) == [third["secret"]]


async def test_a_ping_is_logged_and_wakes_the_workflow_at_once(api: Api, admin: str):
    await put(api, admin)
    answer = await api.post("/v1/webhooks/hooks/test", admin)
    assert (answer.status_code, answer.json()["event_type"]) == (202, "webhook.ping")
    (wake,) = await wakes(api)
    assert (wake.webhook_id, wake.at_once) == ((await stored(api)).id, True)
    assert api.relay.nudges >= 1
    listed = (await api.get("/v1/webhooks/hooks/deliveries", admin)).json()["items"]
    assert [it["id"] for it in listed] == [answer.json()["id"]]


async def test_a_disabled_webhook_is_sent_nothing_and_what_it_was_sent_keeps_its_outcome(
    api: Api, admin: str
):
    await put(api, admin)
    sent = (await api.post("/v1/webhooks/hooks/test", admin)).json()["id"]
    async with api.worker.write() as tx:
        delivery = await tx.deliveries.get(TENANT, DeliveryId(sent))
        assert delivery is not None
        await tx.deliveries.replace(delivery.delivered(204, api.clock.now()), expected=delivery.revision)
    await put(api, admin, disabled=True)
    assert (await stored(api)).disabled_by is DisabledBy.ADMIN
    for path in (f"deliveries/{sent}/replay", "test"):
        answer = await api.post(f"/v1/webhooks/hooks/{path}", admin)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    (listed,) = (await api.get("/v1/webhooks/hooks/deliveries", admin)).json()["items"]
    assert listed["status"] == "delivered"


async def test_enabling_forgives_and_sends_what_waits(api: Api, admin: str):
    await put(api, admin)
    webhook = await stored(api)
    failing = webhook.failed(api.clock.now(), None, timedelta(0))
    await change(api, failing)
    shown = (await api.get("/v1/webhooks/hooks", admin)).json()
    assert (shown["disabled"], shown["disabled_by"], shown["failures"]) == (True, "failing", 1)
    still = await put(api, admin, disabled=True)
    assert still.json()["disabled_by"] == "failing", "who disabled it first is who disabled it"
    assert await wakes(api) == []
    enabled = (await put(api, admin)).json()
    assert (enabled["disabled"], enabled["failures"], enabled["paused_until"]) == (False, 0, None)
    assert [it.at_once for it in await wakes(api)] == [True]
    await change(api, (await stored(api)).failed(api.clock.now(), None, timedelta(days=5)))
    moved = (await put(api, admin, url="https://other.example.com/in")).json()
    assert (moved["failures"], moved["failing_since"]) == (0, None), "another URL is tried at once"
    assert [it.at_once for it in await wakes(api)] == [True]


async def test_the_log_is_paged_filtered_and_replayed(api: Api, admin: str):
    await put(api, admin)
    for _ in range(3):
        await api.post("/v1/webhooks/hooks/test", admin)
        api.clock.advance(1)
    webhook = await stored(api)
    async with api.worker.write() as tx:
        newest, *_ = await tx.deliveries.page(TENANT, webhook.id)
        failed = newest.failed(500, DeliveryProblem.REFUSED, api.clock.now()).model_copy(
            update={"status": DeliveryStatus.FAILED, "next_at": None}
        )
        await tx.deliveries.replace(failed, expected=1)
    at = "/v1/webhooks/hooks/deliveries"
    first = (await api.get(f"{at}?limit=2", admin)).json()
    rest = (await api.get(f"{at}?limit=2&cursor={first['next_cursor']}", admin)).json()
    assert len({it["id"] for it in first["items"] + rest["items"]}) == 3
    assert rest["next_cursor"] is None
    assert (await api.get(f"{at}?status=pending&cursor={first['next_cursor']}", admin)).status_code == 400
    (only,) = (await api.get(f"{at}?status=failed", admin)).json()["items"]
    assert (only["id"], only["response_status"], only["problem"]) == (newest.id, 500, "refused")
    await wakes(api)
    replayed = await api.post(f"{at}/{newest.id}/replay", admin)
    assert (replayed.status_code, replayed.json()["status"]) == (202, "pending")
    assert replayed.json()["event_id"] == newest.event_id, "receivers know it by its id"
    assert [it.at_once for it in await wakes(api)] == [True]
    await put(api, admin, "other")
    foreign = await api.post(f"/v1/webhooks/other/deliveries/{newest.id}/replay", admin)
    assert foreign.status_code == 404


async def test_every_change_is_in_the_audit_log(api: Api, admin: str):
    await put(api, admin)
    await api.post("/v1/webhooks/hooks/rotate-secret", admin)
    delivery = (await api.post("/v1/webhooks/hooks/test", admin)).json()["id"]
    await api.post(f"/v1/webhooks/hooks/deliveries/{delivery}/replay", admin)
    webhook = await stored(api)
    assert (await api.call("DELETE", "/v1/webhooks/hooks", admin)).status_code == 204
    assert [it.action for it in await api.records(of=webhook.id)] == [
        AuditAction.WEBHOOK_PUT,
        AuditAction.WEBHOOK_SECRET_ROTATED,
        AuditAction.WEBHOOK_TESTED,
        AuditAction.DELIVERY_REPLAYED,
        AuditAction.WEBHOOK_DELETED,
    ]


async def test_a_tenant_has_a_bounded_number(api: Api, admin: str):
    for n in range(50):
        assert (await put(api, admin, f"w-{n}")).status_code == 201
    assert (await put(api, admin, "one-more")).status_code == 400
    assert (await put(api, admin, "w-7")).status_code == 200
    first = (await api.get("/v1/webhooks?limit=30", admin)).json()
    rest = (await api.get(f"/v1/webhooks?limit=30&cursor={first['next_cursor']}", admin)).json()
    assert len(first["items"]) + len(rest["items"]) == 50
