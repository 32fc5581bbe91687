"""Older secrets are listed while they are accepted, and retired once nothing uses them."""

from datetime import timedelta

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.fakes.patience import eventually

SECRETS = "/v1/keys/secrets"


async def older(api: Api, key: str) -> list[dict[str, object]]:
    answer = await api.get(SECRETS, key)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_an_older_api_key_is_retired_once_the_newer_one_is_used_and_it_is_not(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    _, used = await api.active_for("report", Action.TOKEN)
    assert await older(api, admin) == [], "an app with one key replaces none"
    api.clock.advance(1)  # else neither key is the older one
    newer = (await api.post("/v1/apps/report/keys", admin)).json()
    assert (await api.lease(used)).status_code == 200
    # a use is written with the next batch of leases
    (secret,) = await eventually(lambda: older(api, admin), lambda secrets: bool(secrets[0]["in_use"]))
    assert (secret["kind"], secret["name"]) == ("app_key", "report")
    body = {"kind": "app_key", "name": "report"}
    refused = await api.post(f"{SECRETS}/retire", admin, body)
    assert refused.status_code == 400
    assert "is in use" in refused.text
    assert (await api.lease(newer["key"])).status_code == 200
    api.clock.advance(60)
    (secret,) = await older(api, admin)
    assert secret["in_use"] is True, "for an hour after its last use"
    api.clock.advance(3700)
    (secret,) = await eventually(lambda: older(api, admin), lambda secrets: not secrets[0]["in_use"])
    assert secret["in_use"] is False
    assert (await api.post(f"{SECRETS}/retire", admin, body)).status_code == 200
    assert (await api.get("/v1/connections", used)).status_code == 401
    assert (await api.get("/v1/connections", newer["key"])).status_code == 200
    assert await older(api, admin) == []
    assert len(await api.records(AuditAction.KEY_REVOKED, of=str(secret["key_id"]))) == 1
    assert (await api.post(f"{SECRETS}/retire", admin, body)).status_code == 404


async def test_a_client_secret_is_retired_unless_the_provider_refuses_the_newer_one(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    await api.integration()
    body = {"client_secret": "newer", "overlap_s": 86400}
    assert (await api.post("/v1/integrations/crm/rotate-secret", admin, body)).status_code == 200
    retire = {"kind": "client_secret", "name": "crm"}
    async with api.worker.write() as tx:
        integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        refused = integration.__replace__(secret_refused_at=api.clock.now())
        await tx.integrations.replace(refused, expected=integration.revision)
    answer = await api.post(f"{SECRETS}/retire", admin, retire)
    assert answer.status_code == 400
    assert "provider refuses the newer secret" in answer.text
    async with api.worker.write() as tx:
        integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        await tx.integrations.replace(
            integration.__replace__(secret_refused_at=None), expected=integration.revision
        )
    assert (await api.post(f"{SECRETS}/retire", admin, retire)).status_code == 200
    async with api.worker.read() as tx:
        integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        assert await tx.integrations.previous_secret(integration) is None
        current = await tx.integrations.client_secret(integration)
        assert current is not None
        assert current.reveal() == "newer"
    assert len(await api.records(AuditAction.SECRET_RETIRED, of=integration.id)) == 1


async def test_a_webhooks_older_secret_signs_until_it_is_retired_or_its_time_is_over(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    hook = {"url": "https://receiver.example/hook"}
    assert (await api.call("PUT", "/v1/webhooks/hooks", admin, json=hook)).is_success
    rotate = "/v1/webhooks/hooks/rotate-secret"
    assert (await api.post(rotate, admin, {"overlap": 3600})).status_code == 200
    assert [secret["kind"] for secret in await older(api, admin)] == ["webhook_secret"]

    async def signing() -> int:
        async with api.worker.read() as tx:
            webhook = await tx.webhooks.by_name(TENANT, "hooks")
            assert webhook is not None
            return len(await tx.webhooks.signing_secrets(webhook, api.clock.now()))

    assert await signing() == 2
    body = {"kind": "webhook_secret", "name": "hooks"}
    assert (await api.post(f"{SECRETS}/retire", admin, body)).status_code == 200
    assert await signing() == 1
    assert (await api.post(rotate, admin, {"overlap": 3600})).status_code == 200
    api.clock.advance(timedelta(hours=2).total_seconds())
    assert await older(api, admin) == []
    assert await signing() == 1


async def test_only_admins_retire_and_auditors_see(api: Api):
    reader = await api.app_with("reader", Action.TOKEN)
    auditor = await api.app_with("auditor", Action.AUDIT)
    assert (await api.get(SECRETS, reader)).status_code == 403
    assert await older(api, auditor) == []
    body = {"kind": "app_key", "name": "reader"}
    assert (await api.post(f"{SECRETS}/retire", auditor, body)).status_code == 403
