"""Invariant 8: no token leaves without a committed audit record."""

import pytest

from evergrant_server import audit
from evergrant_server.audit.lease_queue import Written
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from tests.fakes.api import TENANT, Api


async def test_the_audit_log_can_not_be_written(api: Api, monkeypatch: pytest.MonkeyPatch):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert [(await api.lease(key)).status_code for _ in range(2)] == [200, 200]
    assert api.app.state.judged_pairs.leased == 1

    async def no_room(*_: object) -> Written:
        raise Failure(ErrorCode.STORE_UNAVAILABLE, "no room on the disk")

    monkeypatch.setattr(api.parts.ledger, "_write", no_room)
    for _ in range(3):
        answer = await api.lease(key)
        assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
        assert "at-1" not in answer.text
        assert answer.headers["retry-after"]


async def test_every_lease_is_in_the_log_and_repeated_refusals_as_one_record(api: Api):
    connection = await api.active(await api.integration())
    may, may_not = await api.app_with("may", Action.TOKEN), await api.app_with("may-not", Action.CONNECT)
    trace = "0af7651916cd43dd8448eb211c80319c"
    for _ in range(3):
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        path = f"/v1/connections/{connection.id}/token"
        assert (await api.post(path, may, headers=headers)).status_code == 200
        assert (await api.post(path, may_not, headers=headers)).status_code == 403
    issued = await api.records(AuditAction.LEASE_ISSUED, of=connection.id)
    other = await api.app_with("other", Action.CONNECT)
    assert (await api.lease(other)).status_code == 403  # another app's is a refusal of its own
    for n in range(3):  # so is another code; what isn't found is one kind, whatever its name
        assert (await api.lease(may_not, integration=f"none-{n}")).status_code == 404
    await api.app.state.refusals.stop()
    refused = await api.records(AuditAction.LEASE_REFUSED)
    told = [(it.detail["code"], it.detail.get("repeated")) for it in refused]
    denied, missing = ErrorCode.NOT_PERMITTED, ErrorCode.NOT_FOUND
    assert told == [(denied, None), (denied, None), (missing, None), (denied, 2), (missing, 2)]
    assert len(issued) == 3
    assert api.app.state.judged_pairs.leased == 2
    assert {it.context.by for it in issued} == {"app:may"}
    assert [it.context.by for it in refused] == [f"app:{it}" for it in ("may-not", "other", *["may-not"] * 3)]
    assert {it.context.trace_id for it in (*issued, refused[0], refused[3])} == {trace}
    assert (await audit.verify_log(api.worker, TENANT)).ok
