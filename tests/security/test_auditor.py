"""What the action `audit` reads, and that it changes nothing: every route of the application."""

import re

from sqlalchemy import text

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.security.test_authorization import BODIES, QUERIES, filled, guarded

# Bodies that an app with every action may send; the others of the walk are in BODIES.
MORE = {
    "POST /v1/integrations/{name}/rotate-secret": {"client_secret": "new"},
    "POST /v1/connections/import": {"connections": []},
    "POST /v1/connections/export": {"public_key": {}},
}
NOT_READ = {"/v1/connections/export"}  # refresh tokens
ABSENT = {"/v1/providers/{provider}/versions"}  # the tenant has no definition of its own


async def world(api: Api) -> dict[str, str]:
    """Something to read at every route, and its ids."""
    connection = await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    await api.call("PUT", "/v1/webhooks/crm", boss, json={"url": "https://hooks.example.com/in"})
    ping = await api.post("/v1/webhooks/crm/test", boss)
    receiver = {"kind": "slack", "secret": "a-signing-secret"}
    await api.call("PUT", "/v1/integrations/crm/security-events", boss, json=receiver)
    key_id = "_".join(boss.split("_")[1:3])
    await api.call("PUT", "/v1/apps/crm", boss, json={})
    await api.call("PUT", "/v1/apps/crm/permits/only", boss, json={"integration": "*", "actions": ["token"]})
    return {
        "name": "crm",
        "provider": "gitlab",
        "permit_name": "only",
        "connection_id": connection.id,
        "delivery_id": ping.json()["id"],
        "key_id": key_id,
        "approval_id": "apr_0000000000000000000000",
    }


async def rows(api: Api) -> dict[str, list]:
    """Everything the database holds, but last uses of keys and the audit log."""
    async with api.worker.read() as tx:
        names = await tx.connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        kept = [name for (name,) in names if not name.startswith(("app_key_use", "audit"))]
        return {it: [*await tx.connection.execute(text(f'SELECT * FROM "{it}"'))] for it in kept}


async def test_an_auditor_reads_every_list_and_changes_nothing(api: Api):
    values = await world(api)
    api.link.events = {None: []}
    key = await api.app_with("auditor", Action.AUDIT)
    before, read, refused, said = await rows(api), 0, 0, len(await api.records())
    for method, path in guarded(api):
        route = f"{method} {path}"
        url = filled(path + QUERIES.get(path, "").replace("ours", "crm"), values)
        body = BODIES.get(route, MORE.get(route, {}))
        body = body | {"integration": "crm"} if body.get("integration") == "theirs" else body
        answer = await api.call(method, url, key, json=body)
        if method == "GET" and path not in NOT_READ:
            assert answer.status_code == (404 if path in ABSENT else 200), (route, answer.text)
            assert not re.search("at-1|hush-hush|a-signing-secret", answer.text), route
            read += 1
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted"), (route, answer.text)
            refused += 1
    assert await rows(api) == before
    assert {it.action for it in (await api.records())[said:]} == {AuditAction.LEASE_REFUSED}
    assert (read, refused) > (20, 30)


async def test_an_auditor_of_one_integration_reads_no_configuration_of_the_tenant(api: Api):
    await world(api)
    key = await api.app_with("auditor", Action.AUDIT, integration="crm")
    for path in ("apps", "access", "audit", "webhooks", "approvals"):
        assert (await api.get(f"/v1/{path}", key)).status_code == 403
    await api.integration("other")
    assert [it["name"] for it in (await api.get("/v1/integrations", key)).json()["items"]] == ["crm"]
    assert (await api.get("/v1/integrations/crm", key)).status_code == 200
    assert (await api.get("/v1/integrations/other", key)).status_code == 403
