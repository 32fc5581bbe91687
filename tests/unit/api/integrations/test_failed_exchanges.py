"""What an integration's view says of its newest exchange, read from the audit log."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.messages.base import RequestContext
from tests.fakes.api import TENANT, Api

FAILED, WORKED = AuditAction.REFRESH_FAILED, AuditAction.GRANT_REFRESHED
ERROR = {"reason": "provider_error"}


async def happened(api: Api, it: Connection, action: AuditAction, at: datetime, **detail: Any) -> None:
    context = RequestContext(by="worker")
    entry = AuditEntry(tenant=TENANT, at=at, action=action, object=it.id, context=context, detail=detail)
    async with api.worker.write() as tx:
        await audit.append(tx, entry)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], None),
        ([(WORKED, {})], None),
        ([(FAILED, ERROR)], ("provider_error", "time", 1, False)),
        ([(FAILED, ERROR)] * 5, ("provider_error", "time", 5, True)),
        ([(FAILED, ERROR), (WORKED, {}), *[(FAILED, ERROR)] * 4], ("provider_error", "time", 4, False)),
        ([*[(FAILED, ERROR)] * 9, (AuditAction.NEEDS_REAUTH, {"reason": "grant_rejected"})], None),
        ([(FAILED, {"reason": "client_rejected"})], ("client_rejected", "integration_admin", 0, False)),
        (
            [*[(FAILED, ERROR)] * 5, (AuditAction.CONSENT_FAILED, {"reason": "client_rejected"})],
            ("client_rejected", "integration_admin", 5, True),
        ),
        ([(FAILED, {"reason": "of_a_later_version"})], None),
    ],
)
async def test_the_newest_exchange_and_how_many_had_no_answer(api: Api, told: Any, expected: Any):
    crm, other = await api.integration(), await api.integration("other")
    both = [await api.active(crm, subject=name) for name in ("ann", "bo")]
    elsewhere = await api.active(other)
    key = await api.app_with("boss", Action.AUDIT)
    for number, (action, detail) in enumerate(told):
        at = api.clock.now() + timedelta(seconds=2 * number)
        await happened(api, both[number % 2], action, at, **detail)
        await happened(api, elsewhere, WORKED, at + timedelta(seconds=1))
    one = (await api.get("/v1/integrations/crm", key)).json()
    listed = (await api.get("/v1/integrations", key)).json()["items"]
    assert one["failed_exchange"] == listed[0]["failed_exchange"]
    assert listed[1]["failed_exchange"] is None
    found = one["failed_exchange"]
    if expected is None:
        assert found is None
    else:
        said = tuple(found[name] for name in ("failure", "repairer", "unanswered", "circuit_open"))
        assert said == expected
        assert found["connection_id"] == both[(len(told) - 1) % 2].id


async def test_a_change_of_the_integration_may_be_the_repair(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN)
    await happened(api, connection, FAILED, api.clock.now(), reason="client_rejected")
    api.clock.advance(60)
    body = {"provider": "gitlab", "client_id": "client-2", "client_secret": "another", "binding": "none"}
    put = await api.call("PUT", "/v1/integrations/crm", key, json=body)
    assert put.status_code == 200, put.text
    assert (await api.get("/v1/integrations/crm", key)).json()["failed_exchange"] is None
