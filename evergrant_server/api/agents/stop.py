"""`POST /v1/agents/{name}/stop`: the agent's next request is refused, and a worker ends what it has left."""

from datetime import datetime

from fastapi import APIRouter

from evergrant_server.access.approvals import dangerous
from evergrant_server.api.agents.routes import require_agent
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Slug, Text, View
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AgentStopId, new_id
from evergrant_server.core.outbox import agent_stop_message
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])

_TRIES = 100  # a stop must succeed on a busy row


class StopBody(Body):
    """`revoke_connections`: revoke for good those whose tokens no other app has leased."""

    reason: Text = "stopped"
    revoke_connections: bool = False


class StopView(View):
    """`approvals_closed`, `delegations_ended` (with those that were delegated by its own) and
    `connections_revoked` count what has been ended so far, `connections_kept` the connections that other apps
    use too. `finished_at` null: a worker hasn't come to the end yet.
    """

    id: str
    agent: str
    reason: str
    by: str
    revoke_connections: bool
    created_at: datetime
    approvals_closed: int
    connections_revoked: int
    connections_kept: int
    delegations_ended: int
    finished_at: datetime | None


@router.post("/v1/agents/{name}/stop", status_code=202)
@dangerous("always", second=False)
async def stop_agent(name: Slug, call: AdminCall, body: StopBody | None = None) -> StopView:
    """Stop an agent. From this response on its requests are refused, and what waits of it in any process
    gets nothing; then a worker closes its approvals. `PUT /v1/apps/{name}` with `disabled: false` ends it.
    """
    call.require_step_up()
    if name == call.caller.app.name:
        raise invalid_request("name", "An agent can't stop itself with its own key.")
    wanted = body or StopBody()

    async def write(tx: Transaction) -> StopView:
        agent = await require_agent(tx, call, name)
        stopped = agent.__replace__(disabled=True)
        await tx.access.put_app(stopped, expected=agent.revision)
        stop = AgentStop(
            tenant=call.tenant,
            id=AgentStopId(new_id("stp")),
            app_id=agent.id,
            by=call.context.by,
            created_at=call.now,
            **dict(wanted),
        )
        await tx.agent_stops.add(stop)
        detail = {"agent": name, "stop_id": stop.id, **dict(wanted)}
        await call.record(tx, AuditAction.AGENT_STOPPED, agent.id, **detail)
        await tx.outbox.add(agent_stop_message(stop, call.context, call.now))
        return StopView.of(stop, agent=name)

    return await call.write(write, tries=_TRIES)


@router.get("/v1/agents/{name}/stop")
async def get_stop(name: Slug, call: AuditorCall) -> StopView:
    """The last stop of the agent, and how far it has come. 404 for one that was never stopped."""
    return await last_stop(call, name)


async def last_stop(call: ApiCall, name: str) -> StopView:
    async with call.api.store.read() as tx:
        agent = await require_agent(tx, call, name)
        stop = require_found(await tx.agent_stops.newest(call.tenant, agent.id))
    return StopView.of(stop, agent=name)
