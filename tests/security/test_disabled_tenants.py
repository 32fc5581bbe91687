"""A disabled tenant gets nothing, keeps everything, and is enabled by the operator alone."""

import json

import pytest
from sqlalchemy import delete, text, update

from evergrant_server.access.credentials import checksum
from evergrant_server.api.people.sessions import make_break_glass_session
from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.tenants import TenantStandingRow
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.assertions import asserting_app
from tests.fakes.events.webhook_receiver import listening
from tests.fakes.failures import fails
from tests.fakes.visitor import Visitor, consent_of
from tests.security.isolation.world import ISSUER
from tests.security.people import ROLES, put_session

WHY = "INC-7: unpaid"


async def disabled(api: Api, tenant: Tenant = TENANT, *, now: bool = True) -> bool:
    return await set_disabled(api.worker, api.clock, tenant, WHY, disabled=now)


async def code(api: Api, method: str, path: str, key: str, **more: object) -> str:
    answer = await api.call(method, path, key, **more)
    return "" if answer.is_success else answer.json()["code"]


async def test_a_disabled_tenant_leases_nothing_from_the_next_lease_on_and_others_do(api: Api):
    connection, key = await api.active_for("sync", Action.TOKEN, Action.CONNECT, Action.ADMIN)
    beside = await api.active(await api.integration(tenant=OTHER), "at-other")
    other = await api.app_with("sync", Action.TOKEN, tenant=OTHER)
    for caller in (key, other):
        assert (await api.lease(caller)).status_code == 200  # the next one comes from memory
    assert await disabled(api)
    for refused in (await api.lease(key), await api.get(f"/v1/connections/{connection.id}", key)):
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant_disabled")
    assert (await api.lease(other)).json()["access_token"] == "at-other"
    assert len(await api.records(AuditAction.LEASE_ISSUED)) == 1
    assert await disabled(api, now=False)
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    assert beside.tenant == OTHER


async def test_its_apps_get_no_token_and_its_people_no_session(api: Api):
    _, admin = await api.active_for("boss", Action.ADMIN)
    await api.app_with("sync", Action.TOKEN)
    app = await asserting_app(api, admin, "sync")
    token, (_, session) = await app.token(), await put_session(api, TENANT, PersonRole.TENANT_ADMIN)
    assert (await api.get("/v1/apps", session)).status_code == 200
    await disabled(api)
    refused = await app.ask()
    assert (refused.status_code, refused.json()["error"]) == (400, "unauthorized_client")
    (record,) = await api.records(AuditAction.TOKEN_REFUSED)
    assert record.detail["rule"] == "The tenant is disabled."
    assert (await api.lease(token)).json()["code"] == "tenant_disabled"
    assert await code(api, "GET", "/v1/apps", session) == "tenant_disabled"


async def test_a_wrong_key_does_not_learn_that_a_tenant_is_disabled(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    await disabled(api)
    guessed = f"{key[:31]}{'5' * 64}"
    stranger = guessed + checksum(guessed)
    assert [(await api.lease(it)).status_code for it in (stranger, key)] == [401, 403]


async def test_its_connect_pages_say_so_and_a_code_that_comes_back_is_not_stored(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    body = {"integration": "crm", "subject": "user-1"}
    link = (await api.post("/v1/connections", key, body)).json()["connect_url"]
    visitor = Visitor(api)
    await visitor.go_on(link)
    await disabled(api)
    for page in (await visitor.come_back(), await Visitor(api).open(link)):
        assert (page.status_code, "Connecting is switched off here for now." in page.text) == (403, True)
        assert "tenant_disabled" in page.text
    assert (await consent_of(api, link)).status == "started"
    (record,) = await api.records(AuditAction.CALLBACK_REFUSED)
    assert record.detail["code"] == "tenant_disabled"
    assert await api.records(AuditAction.CONSENT_RETURNED) == []
    assert await code(api, "POST", "/v1/connections", key, json=body) == "tenant_disabled"


async def test_its_people_can_not_log_in_and_an_install_is_led_nowhere(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    await api.integration("staff", issuer=ISSUER.issuer, endpoints=ISSUER)
    shop = await api.integration("shop", provider="bigcommerce")
    put = await api.call("PUT", "/v1/admin-login", boss, json={"integration": "staff", "roles": ROLES})
    assert put.status_code == 201
    browser = Visitor(api).browser
    for at in (f"/login?tenant={TENANT}", f"/oauth/callback/{shop.id}?code=c"):
        assert (await browser.get(at)).status_code == 200
    await disabled(api)
    for at in (f"/login?tenant={TENANT}", f"/oauth/callback/{shop.id}?code=c"):
        page = await browser.get(at)
        assert (page.status_code, "has disabled the tenant" in page.text) == (403, True)


async def test_the_operator_revokes_with_a_session_of_the_host_and_imports_nothing(api: Api):
    connection, key = await api.active_for("sync", Action.TOKEN)
    await disabled(api)
    token = await make_break_glass_session(api.worker, api.clock, TENANT, "ann", WHY)
    explained = await api.get(f"/v1/access/explain?app=sync&connection={connection.id}", token)
    assert [it["code"] for it in explained.json()["stopped_by"]] == ["tenant_disabled"]
    item = {"integration": "crm", "subject": "b", "access_token": "a", "expires": "unknown"}
    imported = {"items": [item], "verify": False}
    assert await code(api, "POST", "/v1/connections/import", token, json=imported) == "tenant_disabled"
    assert await code(api, "POST", f"/v1/connections/{connection.id}/reauthorize", token) == "not_permitted"
    assert (await api.post(f"/v1/connections/{connection.id}/revoke", token)).status_code == 202
    assert (await api.row(TENANT, connection.id)).state is LifecycleState.REVOKING
    assert (await api.lease(key)).status_code == 403


@pytest.mark.parametrize("how", ["enabled", "deleted", "replaced"])
async def test_a_tenant_enabled_by_hand_gets_nothing_until_the_operator_enables_it(api: Api, how: str):
    """Write access to the database alone enables no tenant (invariant 11)."""
    _, key = await api.active_for("sync", Action.TOKEN)
    await api.integration(tenant=OTHER)
    await disabled(api)
    table = TenantStandingRow
    mine, others = (columns_equal(table, tenant=it) for it in (TENANT, OTHER))
    async with api.worker.write() as tx:
        if how == "enabled":
            await tx.connection.execute(update(table).where(mine).values(disabled=False))
        else:
            await tx.connection.execute(delete(table).where(mine))
        if how == "replaced":
            await tx.connection.execute(update(table).where(others).values(tenant=TENANT, id=TENANT))
    refused = (await api.lease(key)).json()
    assert (refused["code"], refused["row"]) == ("authority_broken", TENANT)
    assert await disabled(api, now=False)
    assert (await api.lease(key)).status_code == 200


async def test_each_change_is_recorded_once_with_its_reason_and_told_to_webhooks(api: Api):
    await listening(api.worker, "https://a.example/in", api.clock.now(), tenant=TENANT)
    await api.app_with("sync")
    assert [await disabled(api, now=now) for now in (True, True, False, False)] == [True, False, True, False]
    found = await api.records(AuditAction.TENANT_DISABLED, AuditAction.TENANT_ENABLED)
    told = [(it.action, it.object, it.context.by, it.detail) for it in found]
    said = (TENANT, "operator", {"reason": WHY})
    assert sorted(told) == [("tenant.disabled", *said), ("tenant.enabled", *said)]
    async with api.worker.read() as tx:
        bodies = [json.loads(row[0]) for row in await tx.connection.execute(text("SELECT body FROM event"))]
    assert {it["type"]: it["data"] for it in bodies} == {
        f"tenant.{word}": {"tenant": TENANT, "reason": WHY} for word in ("disabled", "enabled")
    }


async def test_no_tenant_begins_by_a_mistyped_name_and_no_reason_breaks_a_log(api: Api):
    await api.app_with("sync")
    for name in ("acmee", "ACME", "", "a/b", "\udcff", "a" * 300):
        with fails(ErrorCode.NOT_FOUND, "There is no tenant"):
            await set_disabled(api.worker, api.clock, Tenant(name), WHY, disabled=True)
    for reason in ("", " ", "a\nb", "a" * 256, "\x1b[2J"):
        with fails(ErrorCode.INVALID_REQUEST):
            await set_disabled(api.worker, api.clock, TENANT, reason, disabled=True)
    assert await api.records() == []
