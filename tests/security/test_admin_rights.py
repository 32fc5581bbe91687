"""What an app reaches with `admin` alone, or with `token` alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwk
from sqlalchemy import text

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import OTHER, TENANT, Api, running_api
from tests.fakes.events.webhook_receiver import listening, log_of

REPORT = {"generation": 1, "reason": "unauthorized"}
OWN = "/v1/apps/boss/permits/more"


def with_setting(api: Api, **changes: bool) -> None:
    object.__setattr__(api.parts, "settings", api.parts.settings.model_copy(update=changes))


async def test_an_app_with_token_alone_forces_no_refresh(api: Api):
    """It could have the provider called with every request of its own."""
    connection, key = await api.active_for("reader", Action.TOKEN)
    api.refreshes_with("at-2", "at-3", "at-4")
    at = f"/v1/connections/{connection.id}/refresh"
    for _ in range(25):
        answer = await api.post(at, key)
        assert (answer.status_code, answer.json()["generation"]) == (200, 1)
    assert api.link.asked == []
    assert (await api.post(at, key, REPORT)).json()["generation"] == 2
    api.clock.advance(3590)  # due
    for _ in range(25):
        assert (await api.post(at, key)).json()["generation"] == 3
    assert len(api.link.asked) == 2
    asker = await api.app_with("asker", Action.TOKEN, Action.CONNECT)
    assert (await api.post(at, asker)).json()["generation"] == 4


async def test_refresh_tokens_leave_for_export_alone(api: Api):
    admin, mover = await api.app_with("boss", Action.ADMIN), await api.app_with("mover", Action.EXPORT)
    body, at = {"public_key": {}}, "/v1/connections/export"
    for method in ("POST", "GET", "DELETE"):
        refused = await api.call(method, at, admin, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
        assert "export" in refused.json()["detail"]
        assert (await api.call(method, at, mover, json=body)).status_code in (400, 404)
    assert (await api.get("/v1/apps", mover)).status_code == 403


@pytest.mark.parametrize("action", ["token", "proxy", "export"])
async def test_an_app_gives_itself_no_action_that_reaches_tokens(api: Api, action: str):
    admin, permit = await api.app_with("boss", Action.ADMIN), {"integration": "*", "actions": [action]}
    refused = await api.call("PUT", OWN, admin, json=permit)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    assert (await api.get(OWN, admin)).status_code == 404
    assert (await api.call("PUT", OWN, admin, json={**permit, "actions": ["connect"]})).status_code == 201
    second = await api.app_with("second", Action.ADMIN)
    assert (await api.call("PUT", OWN, second, json=permit)).status_code == 200
    with_setting(api, self_permits=True)
    assert (await api.call("PUT", OWN, admin, json=permit)).status_code == 200


async def alarms(api: Api) -> list[dict]:
    """What webhooks are sent about bulk reads."""
    async with api.worker.read() as tx:
        found = await tx.connection.execute(text("SELECT body FROM event WHERE type = 'tokens.bulk_read'"))
    return [json.loads(body)["data"] for (body,) in found]


async def test_many_leases_of_one_app_are_an_alarm_once_an_hour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with running_api(tmp_path, bulk_read_alarm=3) as api:
        everywhere = await listening(api.worker, "https://a.example/in", api.clock.now(), tenant=TENANT)
        of_one = {"name": "of-one", "integration": "crm", "tenant": TENANT}
        elsewhere = await listening(api.worker, "https://b.example/in", api.clock.now(), **of_one)
        integration, key = await api.integration(), await api.app_with("reader", Action.TOKEN)
        for subject in ("a", "b", "c", "d"):
            await api.active(integration, f"at-{subject}", subject=subject, lifetime=None)
        for subject, told in (("a", 0), ("a", 0), ("b", 0), ("c", 1), ("d", 1), ("a", 1)):
            assert (await api.lease(key, subject=subject)).status_code == 200
            assert len(await alarms(api)) == told
        assert await alarms(api) == [{"tenant": TENANT, "app": "reader", "kind": "lease"}]
        assert (len(await log_of(api.worker, everywhere)), await log_of(api.worker, elsewhere)) == (1, [])
        (record,) = await api.records(AuditAction.BULK_READ)
        assert record.detail == {"app": "reader", "kind": "lease", "connections": 3}
        assert "bulk read: lease by the app reader" in caplog.text
        api.clock.advance(3600)
        for subject in ("a", "b", "c"):
            assert (await api.lease(key, subject=subject)).status_code == 200
        assert len(await alarms(api)) == 2


async def test_every_export_is_an_alarm(api: Api):
    await listening(api.worker, "https://a.example/in", api.clock.now(), tenant=TENANT)
    mover = await api.app_with("mover", Action.EXPORT)
    public = jwk.OKPKey.generate_key("X25519").as_dict(private=False)
    assert (await api.post("/v1/connections/export", mover, {"public_key": public})).status_code == 202
    assert await alarms(api) == [{"tenant": TENANT, "app": "mover", "kind": "export"}]


PUBLIC = jwk.OKPKey.generate_key("X25519").as_dict(private=False)
NEW_KEY = ("POST", "/v1/apps/pipeline/keys", {"lifetime": 3600}, {"lifetime": 60})
NEW_PERMIT = ("PUT", "/v1/apps/pipeline/permits/x", *({"integration": "crm", "actions": [it]} for it in
              ("admin", "token")))  # fmt: skip
NEW_EXPORT = ("POST", "/v1/connections/export", *({"public_key": PUBLIC, "filters": it} for it in
              ({}, {"subject": "a"})))  # fmt: skip


async def test_an_app_neither_lifts_what_denies_it_tokens_nor_locks_itself_out(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    deny = {"integration": "crm", "actions": ["token"], "effect": "deny"}
    at, key = "/v1/apps/second/permits/deny", await api.app_with("second", Action.ADMIN)
    assert (await api.call("PUT", at, admin, json=deny)).status_code == 201
    weaker = [
        deny | it for it in ({"mode": "observe"}, {"subjects": ["a"]}, {"expires_at": "2026-01-01T00:00:00Z"})
    ]
    refused = [await api.call("PUT", at, key, json=it) for it in (*weaker, deny | {"actions": ["connect"]})]
    refused += [await api.call("DELETE", at, key)]
    assert {(it.status_code, it.json()["code"]) for it in refused} == {(403, "not_permitted")}
    own = await api.call("PUT", "/v1/apps/second/permits/own", key, json=deny | {"actions": ["admin"]})
    assert (own.status_code, own.json()["field"]) == (400, "actions")
    assert (await api.call("PUT", "/v1/apps/second/permits/own", key, json=deny)).status_code == 201
    assert (await api.call("DELETE", at, admin)).status_code == 204


@pytest.mark.parametrize(
    "limits", [{"effect": "deny"}, {"expires_at": "2026-01-01T00:00:00Z"}, {"sources": ["10.1.0.0/16"]}]
)
async def test_the_operator_brings_a_denied_admin_back(api: Api, limits: dict[str, Any]):
    lifetime = api.parts.settings.api_key_lifetime
    await bootstrap_admin(api.store, api.clock, TENANT, lifetime)
    boss = await api.app_with("boss", Action.ADMIN)
    own = {"integration": "*", "actions": ["admin"]} | limits
    assert (await api.call("PUT", "/v1/apps/admin/permits/admin", boss, json=own)).status_code == 200
    api.clock.advance(60)
    key = await bootstrap_admin(api.store, api.clock, TENANT, lifetime, force=True)
    (permit,) = (await api.get("/v1/apps/admin/permits", key)).json()["items"]
    assert (permit["effect"], permit["expires_at"], permit["sources"]) == ("allow", None, None)
    assert await bootstrap_admin(api.store, api.clock, TENANT, lifetime, force=True)
    (record,) = await api.records(AuditAction.PERMIT_DELETED)
    assert (record.at, record.context.by) == (api.clock.now(), "operator")


async def test_with_four_eyes_a_deny_is_lifted_by_two(tmp_path: Path):
    async with running_api(tmp_path, four_eyes=True) as api:
        await api.app_with("pipeline")
        first, second = [await api.app_with(name, Action.ADMIN) for name in ("first", "second")]
        deny = {"integration": "crm", "actions": ["token"], "effect": "deny"}
        at = "/v1/apps/pipeline/permits/deny"
        assert (await api.call("PUT", at, first, json=deny)).status_code == 201, "it takes something away"
        for method, more in (("PUT", {"json": deny | {"mode": "observe"}}), ("DELETE", {})):
            refused = await api.call(method, at, first, **more)
            assert refused.json()["code"] == "approval_required"
        await api.post(f"/v1/approvals/{refused.json()['approval_id']}", second)
        assert (await api.call("DELETE", at, first)).status_code == 204
        (record,) = await api.records(AuditAction.PERMIT_DELETED)
        assert record.detail["approved_by"] == "app:second"


@pytest.mark.parametrize(("method", "path", "body", "other"), [NEW_KEY, NEW_PERMIT, NEW_EXPORT])
async def test_with_four_eyes_a_command_waits_for_a_second_app(
    tmp_path: Path, method: str, path: str, body: dict, other: dict
):
    async with running_api(tmp_path, four_eyes=True) as api:
        await api.app_with("pipeline")
        first = await api.app_with("first", Action.ADMIN, Action.EXPORT)
        second, reader = (
            await api.app_with("second", Action.ADMIN),
            await api.app_with("reader", Action.EXPORT),
        )
        foreign = await api.app_with("foreign", Action.ADMIN, tenant=OTHER)

        async def waits(body: dict = body) -> str:
            refused = await api.call(method, path, first, json=body)
            assert (refused.status_code, refused.json()["code"]) == (403, "approval_required")
            return f"/v1/approvals/{refused.json()['approval_id']}"

        at = await waits()
        assert await waits() == at
        assert len(await api.records(AuditAction.APPROVAL_REQUESTED)) == 1
        answers = [(await api.post(at, key)).status_code for key in (first, reader, foreign)]
        assert answers == [403, 403, 404]
        (shown,) = (await api.get("/v1/approvals", second)).json()["items"]
        assert (shown["by"], shown["command"], shown["approved_by"]) == (
            "app:first",
            f"{method} {path}",
            None,
        )
        assert shown["body"].keys() >= body.keys()
        assert (await api.get("/v1/approvals", foreign)).json()["items"] == []
        for _ in range(2):
            assert (await api.post(at, second)).json()["approved_by"] == "app:second"
        assert await waits(other) != at, "another body is another command"
        assert (await api.call(method, path, first, json=body)).status_code in (201, 202)
        done = {AuditAction.KEY_CREATED, AuditAction.PERMIT_PUT, AuditAction.EXPORT_REQUESTED}
        assert [it.detail["approved_by"] for it in await api.records(*done)] == ["app:second"]
        if method == "PUT":
            assert (await api.call(method, path, first, json=body)).status_code == 200, "it changes nothing"
            assert (await api.call("DELETE", path, first)).status_code == 204
        assert await waits() == at, "once"
        api.clock.advance(86_400)
        assert (await api.post(at, second)).status_code == 404, "it waits for a day"
        assert await waits() == at
        await api.post(at, second)
        assert (await api.call(method, path, first, json=body)).status_code in (200, 201, 202)
