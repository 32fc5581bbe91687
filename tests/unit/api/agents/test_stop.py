"""The stop of an agent: at the next commit in every process, then its approvals and connections, counted."""

from datetime import timedelta
from typing import Any

from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.agents import AgentStopActivities
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AgentStopId
from evergrant_server.core.messages.agents import AgentStopCall, AgentStopProgress
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.outbox import OutboxKind
from tests.fakes.api import TENANT, Api
from tests.fakes.failures import fails
from tests.fakes.rows import a_delegation

PATH = "/v1/agents/bot/stop"


async def an_agent(api: Api) -> tuple[str, str]:
    """The keys of an admin and of an agent that may lease."""
    admin = await api.app_with("admin", Action.ADMIN)
    bot = await api.app_with("bot", Action.TOKEN)
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()
    await api.call("PUT", "/v1/agents/bot", admin, json={"purpose": "a test", "ends_at": ends_at})
    return admin, bot


async def finished(api: Api, stop_id: str) -> AgentStopProgress:
    """What its workflow has done, to the end."""
    call = AgentStopCall(
        tenant=TENANT,
        stop_id=AgentStopId(stop_id),
        context=RequestContext(by="app:admin"),
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )
    steps = AgentStopActivities(api.worker, api.clock)
    while not (progress := await ActivityEnvironment().run(steps.advance_agent_stop, call)).finished:
        pass
    return progress


async def asked(api: Api, bot: str, connection_id: str, numbers: range) -> list[str]:
    wanted: dict[str, Any] = {"connection_id": connection_id, "method": "GET", "reason": "a test"}
    urls = [f"https://api.example.com/{number}" for number in numbers]
    return [(await api.post("/v1/call-approvals", bot, {**wanted, "url": url})).json()["id"] for url in urls]


async def test_a_stop_refuses_the_next_request_and_closes_what_was_approved(api: Api):
    connection = await api.active(await api.integration(), lifetime=None)
    admin, bot = await an_agent(api)
    first, *_ = await asked(api, bot, connection.id, range(50))
    assert (await api.post(f"/v1/call-approvals/{first}/approve", admin)).json()["state"] == "approved"
    await asked(api, bot, connection.id, range(50, 51))
    assert (await api.lease(bot)).status_code == 200
    stop = await api.post(PATH, admin, {"reason": "it sends too much"})
    assert (stop.status_code, stop.json()["finished_at"]) == (202, None)
    assert (await api.lease(bot)).json()["code"] == "app_disabled", "from the cache too"
    assert await finished(api, stop.json()["id"]) == AgentStopProgress(approvals_closed=51, finished=True)
    shown = (await api.get(PATH, admin)).json()
    assert (shown["approvals_closed"], shown["connections_revoked"], shown["by"]) == (51, 0, "app:admin")
    assert (await api.get(f"/v1/call-approvals/{first}", admin)).json()["state"] == "stopped"
    assert (await api.row(TENANT, connection.id)).state is LifecycleState.ACTIVE
    assert (await api.call("PUT", "/v1/apps/bot", admin, json={})).json()["disabled"] is False
    wanted = {"connection_id": connection.id, "method": "GET", "url": "https://api.example.com/0"}
    used = await api.post("/v1/call-approvals/use", bot, wanted)
    assert used.json()["code"] == "call_approval_required", "a new start revives no approval"
    (ended,) = await api.records(AuditAction.AGENT_STOP_ENDED)
    assert ended.detail["approvals_closed"] == 51
    kinds = [it.kind for it in await api.outbox()]
    assert kinds.count(OutboxKind.STOP_AGENT) == 1


async def test_a_stop_revokes_what_no_other_app_has_used_if_it_is_asked_to(api: Api):
    crm = await api.integration()
    own, shared = [await api.active(crm, f"at-{it}", subject=it) for it in ("own", "shared")]
    admin, bot = await an_agent(api)
    other = await api.app_with("other", Action.TOKEN)
    for key, subject in ((bot, "own"), (bot, "shared"), (other, "shared")):
        assert (await api.lease(key, subject=subject)).status_code == 200
    await api.parts.ledger.stop()  # which writes the last uses
    await api.parts.ledger.start()
    stop = await api.post(PATH, admin, {"revoke_connections": True})
    expected = AgentStopProgress(connections_revoked=1, connections_kept=1, finished=True)
    assert await finished(api, stop.json()["id"]) == expected
    states = [(await api.row(TENANT, it.id)).state for it in (own, shared)]
    assert states == [LifecycleState.REVOKING, LifecycleState.ACTIVE]
    (record,) = await api.records(AuditAction.REVOCATION_REQUESTED)
    assert (record.object, record.context.by) == (own.id, "app:admin")
    assert await finished(api, stop.json()["id"]) == expected, "a retried activity changes nothing"


async def test_a_stop_ends_the_agents_delegations_and_those_below_for_good(api: Api):
    admin, _ = await an_agent(api)
    await api.app_with("helper", Action.TOKEN)
    bot, helper = await api.app_named("bot"), await api.app_named("helper")
    now = api.clock.now()
    root, beside = a_delegation(helper, "key_1", "s", now), a_delegation(helper, "key_1", "s", now)
    own, below = a_delegation(bot, "key_1", "s", now), a_delegation(helper, "key_1", "s", now)
    own = own.model_copy(update={"path": (root.id, own.id)})
    below = below.model_copy(update={"path": (*own.path, below.id)})
    async with api.worker.write() as tx:
        for one in (root, beside, own, below):
            await tx.delegations.add(one)
    stop = await api.post(PATH, admin)
    assert await finished(api, stop.json()["id"]) == AgentStopProgress(delegations_ended=2, finished=True)
    assert (await api.get(PATH, admin)).json()["delegations_ended"] == 2
    listed = (await api.get("/v1/delegations", admin)).json()["items"]
    states = {it["id"]: it["state"] for it in listed}
    live, stopped = "live", "stopped"
    assert states == {root.id: live, beside.id: live, own.id: stopped, below.id: stopped}
    (record,) = await api.records(AuditAction.DELEGATION_STOPPED)
    assert (record.object, record.detail["delegations_ended"]) == (own.id, 2)


async def test_who_may_stop_and_what_no_order_stands_for(api: Api):
    admin, bot = await an_agent(api)
    assert (await api.post(PATH, bot)).json()["code"] == "not_permitted"
    assert (await api.post("/v1/agents/admin/stop", admin)).json()["code"] == "invalid_request"
    await api.app_with("plain")
    assert (await api.post("/v1/agents/plain/stop", admin)).json()["code"] == "not_found"
    assert (await api.get(PATH, admin)).json()["code"] == "not_found"
    assert await finished(api, "stp_0000000000000000000000") == AgentStopProgress(finished=True)


async def test_an_order_that_was_changed_by_hand_revokes_nothing(api: Api):
    await api.active(await api.integration(), lifetime=None)
    admin, bot = await an_agent(api)
    await api.lease(bot)
    stop = (await api.post(PATH, admin)).json()
    async with api.worker.write() as tx:
        await tx.connection.execute(text("UPDATE agent_stop SET revoke_connections = true"))
    with fails(ErrorCode.AUTHORITY_BROKEN):
        await finished(api, stop["id"])
    assert await api.records(AuditAction.REVOCATION_REQUESTED) == []
