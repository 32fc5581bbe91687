"""What the action `audit` reads, and that it changes nothing: every route of the application."""

from sqlalchemy import text

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.security.isolation.roles import bearer
from tests.security.isolation.routes import guarded, requests_to
from tests.security.isolation.world import a_world

# refresh tokens; imports of the caller's own
NOT_READ = {"GET /v1/connections/export", "GET /v1/imports", "GET /v1/imports/{import_id}"}
READS = {
    "POST /temporal/decode",
    "POST /v1/questions",
    "POST /v1/offboardings/plan",
}  # a question is answered by what an auditor reads
_OF_QUESTIONS = ("question", "outbox", "sqlite_sequence")  # and makes rows of its own


async def rows(api: Api) -> dict[str, list]:
    """Everything the database holds, but last uses and the audit log."""
    async with api.worker.read() as tx:
        names = await tx.connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        own = ("app_key_use", "permit_use", "caller_network", "audit", *_OF_QUESTIONS)
        kept = [name for (name,) in names if not name.startswith(own)]
        return {it: [*await tx.connection.execute(text(f'SELECT * FROM "{it}"'))] for it in kept}


async def test_an_auditor_reads_every_list_and_changes_nothing(api: Api):
    own = await a_world(api, TENANT)
    api.link.events = {None: []}
    headers = bearer(await api.app_with("auditor", Action.AUDIT))
    before, read, refused, said = await rows(api), 0, 0, len(await api.records())
    for request in (it for route in guarded(api.app) for it in requests_to(route)):
        sent = request.sent(own)
        answer = await api.client.request(**sent | {"headers": sent["headers"] | headers})
        if (request.method == "GET" or request.route in READS) and request.route not in NOT_READ:
            assert answer.status_code in (200, 202), (request, answer.text)
            for secret in (f"at-of-{TENANT}", "hush-hush", f"signing-secret-of-{TENANT}"):
                assert secret not in answer.text, request
            read += 1
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted"), request
            refused += 1
    assert await rows(api) == before
    new = {record.action for record in (await api.records())[said:]}
    assert new == {AuditAction.LEASE_REFUSED, AuditAction.QUESTION_ASKED}
    assert (read, refused) > (20, 30)


async def test_an_auditor_of_one_integration_reads_no_configuration_of_the_tenant(api: Api):
    await api.integration()
    key = await api.app_with("auditor", Action.AUDIT, integration="crm")
    for path in ("apps", "access", "audit", "audit/streams", "webhooks", "approvals"):
        assert (await api.get(f"/v1/{path}", key)).status_code == 403
    await api.integration("other")
    assert [it["name"] for it in (await api.get("/v1/integrations", key)).json()["items"]] == ["crm"]
    assert (await api.get("/v1/integrations/crm", key)).status_code == 200
    assert (await api.get("/v1/integrations/other", key)).status_code == 403
