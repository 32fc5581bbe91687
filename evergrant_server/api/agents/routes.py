"""`/v1/agents`: which apps are agents, who answers for each, what for, until when, and how one is stopped."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, UtcDatetime, View
from evergrant_server.core.access import App
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AgentStopId, AppId, is_id, is_slug, new_id
from evergrant_server.core.outbox import agent_stop_message
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])

LONGEST = timedelta(days=366)
_APP, _PERSON = "app", "person"
_TRIES = 100  # a stop must succeed on a busy row


def _sponsor(value: str) -> str:
    kind, _, name = value.partition(":")
    if not ((kind == _APP and is_slug(name)) or (kind == _PERSON and is_id(name, "psn"))):
        raise ValueError("is app:<name of an app>, or person:<id> as GET /v1/sessions shows it")
    return value


class AgentBody(Body):
    """`sponsor` answers for the agent: `app:<name>`, or `person:<id>` as audit records name people. By
    default it is who sends this. From `ends_at` on, at most 366 days ahead, the agent gets nothing.
    """

    sponsor: Annotated[str, AfterValidator(_sponsor)] | None = None
    purpose: Text
    ends_at: UtcDatetime


class AgentView(View):
    """`active` false: requests of the agent are refused, because it or its sponsor is disabled, or its time
    is over."""

    id: str
    name: str
    sponsor: str
    purpose: str
    ends_at: datetime
    disabled: bool
    active: bool
    created_at: datetime
    revision: int


@router.put("/v1/agents/{name}")
@dangerous("a new agent, another sponsor, purpose or end")
async def put_agent(name: Slug, body: AgentBody, response: Response, call: AdminChange) -> AgentView:
    """Make an app an agent, or give an agent another sponsor, purpose or end. An app of this name is created
    if there is none; one that is an agent stays one until it is deleted.
    """
    if not call.now < body.ends_at <= call.now + LONGEST:
        raise invalid_request("ends_at", f"It must be in the future, and within {LONGEST.days} days.")
    if name == call.caller.app.name:
        raise invalid_request("name", "An app can't make itself an agent: another one must.")

    async def write(tx: Transaction) -> tuple[bool, AgentView]:
        sponsor = body.sponsor or call.context.by
        await _lock(tx, call, name, sponsor)
        before = await tx.access.app_by_name(call.tenant, name)
        answers = await _sponsor_of(tx, call, name, sponsor)
        facts = {"purpose": body.purpose, "ends_at": body.ends_at, **answers}
        approved: dict[str, str] = {}
        if before is None or before.__replace__(**facts) != before:
            known = {"app": None} if before is None else await app_facts(tx, before)
            approved = await use_approval(tx, call, body, {**known, "sponsor": facts["sponsor_app"]})
        if before is None:
            new = App(tenant=call.tenant, id=AppId(new_id("app")), name=name, created_at=call.now)
            after = await tx.access.put_app(new.__replace__(**facts), expected=None)
        else:
            await _require_sponsors_none(tx, before)
            after = await tx.access.put_app(before.__replace__(**facts), expected=before.revision)
        detail = {"sponsor": after.sponsor, "purpose": body.purpose, "ends_at": body.ends_at.isoformat()}
        await call.record(tx, AuditAction.AGENT_PUT, after.id, app=name, **detail, **approved)
        return before is None, await agent_view(tx, after, call.now)

    created, view = await call.write(write)
    response.status_code = 201 if created else 200
    return view


@router.get("/v1/agents")
async def list_agents(call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None) -> Page[AgentView]:
    """All agents of the tenant, sorted by name."""
    listing = call.listing("agents", limit, cursor)
    async with call.api.store.read() as tx:
        agents = await tx.agents.page(call.tenant, listing.after, listing.most)
        views = [await agent_view(tx, agent, call.now) for agent in agents[:limit]]
    return listing.page(views, agents, lambda agent: agent.name)


@router.get("/v1/agents/{name}")
async def get_agent(name: Slug, call: AuditorCall) -> AgentView:
    async with call.api.store.read() as tx:
        return await agent_view(tx, await require_agent(tx, call, name), call.now)


async def require_agent(tx: Transaction, call: ApiCall, name: str) -> App:
    """The agent of this name. Raises Failure NOT_FOUND, also for an app that is none."""
    app = await require_app(tx, call, name)
    return require_found(app if app.is_agent else None)


async def agent_view(tx: Transaction, agent: App, now: datetime) -> AgentView:
    try:
        await tx.agents.require_active(agent, now)
        active = True
    except Failure as failure:
        if failure.code not in (ErrorCode.APP_DISABLED, ErrorCode.AGENT_ENDED):
            raise
        active = False
    return AgentView.of(agent, active=active)


async def _lock(tx: Transaction, call: ApiCall, agent: str, sponsor: str) -> None:
    """Wait for commands that make one of the two apps an agent or a sponsor. Later ones wait for this one."""
    kind, _, name = sponsor.partition(":")
    names = {agent, name} if kind == _APP else {agent}
    apps = [await tx.access.app_by_name(call.tenant, each) for each in names]
    for id in sorted(app.id for app in apps if app is not None):
        await tx.access.locked(call.tenant, id)


async def _sponsor_of(tx: Transaction, call: ApiCall, agent: str, sponsor: str) -> dict[str, str | None]:
    """Who answers for the agent. Raises Failure INVALID_REQUEST for an app that can't."""
    kind, _, name = sponsor.partition(":")
    if kind == _PERSON:
        return {"sponsor": f"{kind}:{name}", "sponsor_app": None}
    app = await tx.access.app_by_name(call.tenant, name)
    if app is None or app.is_agent or name == agent:
        raise invalid_request("sponsor", "An agent's sponsor is a person, or another app that is no agent.")
    return {"sponsor": f"{_APP}:{app.name}", "sponsor_app": app.id}


async def _require_sponsors_none(tx: Transaction, app: App) -> None:
    """Raise Failure INVALID_REQUEST for an app that answers for an agent: an agent can't."""
    if await tx.agents.sponsored_by(app.tenant, app.id, 1):
        raise invalid_request("name", "This app is the sponsor of an agent, so it can't be one itself.")


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
