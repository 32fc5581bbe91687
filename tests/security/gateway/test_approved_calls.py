"""Calls through the gateway that a permit lets through only with a person's approval."""

from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.gateway.proxy.caller_body import KEPT
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, answer

DEMANDS = {"integration": "*", "actions": ["proxy"], "methods": ["POST"], "call_approval": True}
READS = {"integration": "*", "actions": ["proxy"], "methods": ["GET"]}


async def test_a_permit_that_demands_approval_lets_exactly_the_approved_call_through_once(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    admin = await api.app_with("admin", Action.ADMIN)
    connection, key = await api.active_for("agent")
    for name, permit in (("writes", DEMANDS), ("reads", READS)):
        assert (
            await api.call("PUT", f"/v1/apps/agent/permits/{name}", admin, json=permit)
        ).status_code == 201
    path, body = f"/v1/proxy/{connection.id}/refunds?order=7", b'{"sum": 5}'

    async def call(where: str = path, content: bytes = body) -> str:
        made = await gateway.call("POST", where, key, content=content)
        return str(made.status_code) if made.is_success else made.json()["code"]

    assert (await gateway.get(f"/v1/proxy/{connection.id}/refunds", key)).status_code == 200
    assert await call() == "call_approval_required"
    wanted: dict[str, Any] = {
        "connection_id": connection.id,
        "method": "POST",
        "url": f"{upstream.url}/api/refunds?order=7",
        "body": body.decode(),
        "reason": "order 7",
    }
    asked = (await api.post("/v1/call-approvals", key, wanted)).json()
    assert (await api.post(f"/v1/call-approvals/{asked['id']}/approve", admin)).json()["state"] == "approved"
    assert await call(content=b'{"sum": 50}') == "call_approval_required"
    assert await call(f"/v1/proxy/{connection.id}/refunds?order=8") == "call_approval_required"
    assert await call(content=b"x" * (KEPT + 1)) == "call_approval_required"
    assert [it.method for it in upstream.seen] == ["GET"]
    api.refreshes_with("at-2")
    upstream.responses = [answer(b"", "401 Unauthorized"), answer(b"made", "201 Created")]
    assert await call() == "201", "also with a token that was refused and renewed: it is one call"
    assert await call() == "call_approval_required"
    assert [it.method for it in upstream.seen] == ["GET", "POST", "POST"]
    assert len(await api.records(AuditAction.CALL_APPROVAL_USED)) == 1
