"""`/console/agents`: who the agents are, how one is made, changed and stopped, and what they ask for."""

from collections.abc import Mapping
from datetime import UTC

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.agents.routes import (
    AgentBody,
    AgentView,
    StopBody,
    get_agent,
    last_stop,
    list_agents,
    put_agent,
    stop_agent,
)
from evergrant_server.api.apps.routes import list_apps
from evergrant_server.api.console.forms import Form, slug_of
from evergrant_server.api.console.typed import moment_of
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.decisions.call_approvals import (
    CallApprovalView,
    CallDecisionBody,
    approve_call,
    deny_call,
    get_call_approval,
    list_call_approvals,
    visible_call,
)
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import APPROVAL_PAGES, redirect_response
from evergrant_server.api.people.sessions import list_sessions
from evergrant_server.core.access import Action
from evergrant_server.core.decisions import CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_AGENTS, _NEW, _CALLS = "/console/agents", "/console/new/agent", APPROVAL_PAGES
_FIELDS = ("name", "purpose", "sponsor", "ends_at")
_MOST_SPONSORS = 200  # apps, and sessions of people, among which one is chosen


@router.get(_AGENTS)
@console_page
async def show_agents(visit: VisitDep, cursor: str = "") -> Response:
    """The calls that wait for a person, and a page of the tenant's agents."""
    call = await require_auditor(visit.call)
    agents = await list_agents(call, limit=ROWS, cursor=cursor or None)
    waiting = await list_call_approvals(call, state=CallApprovalState.WAITING, limit=ROWS)
    return visit.show(
        "agents.html",
        "Agents",
        found=agents,
        waiting=waiting,
        administers=_administers(visit),
        names=await visit.names_of(
            [agent.sponsor for agent in agents.items]
            + [wanted.sponsor for wanted in waiting.items if wanted.sponsor]
        ),
        **pages_of(_AGENTS, cursor, agents.next_cursor),
    )


# --- an agent's beginning, and its changes --------------------------------------------------------


@router.get(_NEW)
@console_page
async def show_new_agent(visit: VisitDep) -> Response:
    """The form of a new agent."""
    return await _agent_form(visit, Form(), None)


@router.post(_NEW)
@console_page
async def make_agent(visit: VisitDep) -> Response:
    """Make an agent, of an app where the name is one's. The name of an agent is refused."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        await _require_no_agent(call, name)
        await put_agent(name, _agent_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _agent_form(visit, Form.refused(fields, refusal, _FIELDS), None)
    return redirect_response(f"/console/apps/{name}?done=agent-made")


@router.get(f"{_AGENTS}/{{name}}/edit")
@console_page
async def show_edit_agent(visit: VisitDep, name: str) -> Response:
    """The form that changes an agent's sponsor, purpose and end."""
    agent = await get_agent(name, await require_tenant_admin(visit.call))
    sponsor = "" if agent.sponsor == visit.call.context.by else agent.sponsor
    ends_at = f"{agent.ends_at.astimezone(UTC):%Y-%m-%dT%H:%M}"
    values = {"purpose": agent.purpose, "sponsor": sponsor, "ends_at": ends_at}
    return await _agent_form(visit, Form(values), agent)


@router.post(f"{_AGENTS}/{{name}}/edit")
@console_page
async def change_agent(visit: VisitDep, name: str) -> Response:
    """Change who answers for an agent, what it is for, or until when it is one."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    agent = await get_agent(name, call)
    try:
        await put_agent(name, _agent_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _agent_form(visit, Form.refused(fields, refusal, _FIELDS), agent)
    return redirect_response(f"/console/apps/{name}?done=agent-changed")


async def _agent_form(visit: ConsoleVisit, form: Form, agent: AgentView | None) -> Response:
    call = await require_tenant_admin(visit.call)
    title = "Make an agent" if agent is None else f"Change {agent.name}"
    sponsors = await _sponsors(visit, call, agent)
    return visit.show_form("agent_form.html", title, form, agent=agent, sponsors=sponsors)


async def _sponsors(visit: ConsoleVisit, call: ApiCall, agent: AgentView | None) -> list[tuple[str, str]]:
    """Who may answer for the agent, as a form offers them: who asks, people who have logged in, apps."""
    words = {"": f"you, {visit.visitor().name}"}
    for session in (await list_sessions(call, limit=_MOST_SPONSORS)).items:
        words[f"person:{session.person}"] = session.name or session.sub
    for app in (await list_apps(call, limit=_MOST_SPONSORS)).items:
        if app.sponsor is None and (agent is None or app.name != agent.name):
            words[f"app:{app.name}"] = f"the app {app.name}"
    if agent is not None:
        words.setdefault(agent.sponsor, agent.sponsor)
    words.pop(call.context.by, None)
    return list(words.items())


def _agent_body(fields: Mapping[str, str]) -> AgentBody:
    """Raises ValidationError."""
    values = {name: fields[name] for name in ("purpose", "sponsor") if fields.get(name)}
    ends_at = moment_of(fields, "ends_at")
    return AgentBody.model_validate(values | ({} if ends_at is None else {"ends_at": ends_at}))


async def _require_no_agent(call: ApiCall, name: str) -> None:
    """Raise Failure ALREADY_EXISTS for the name of an agent: a put would change that agent."""
    try:
        await get_agent(name, call)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        return
    raise Failure(ErrorCode.ALREADY_EXISTS, "There is an agent of this name.", field="name")


# --- its calls ------------------------------------------------------------------------------------


@router.get(f"{_CALLS}/{{call_approval_id}}")
@console_page
async def show_call(visit: VisitDep, call_approval_id: str) -> Response:
    """Exactly what an agent asks for, and the forms to decide."""
    call = await require_auditor(visit.call)
    answer = await get_call_approval(call_approval_id, call)
    view = CallApprovalView.model_validate_json(bytes(answer.body))
    decides = _administers(visit) and view.state is CallApprovalState.WAITING
    return visit.show(
        "call_approval.html",
        f"{view.agent} asks for a call",
        it=view,
        called=visible_call(view.call),
        names=await visit.names_of(by for by in (view.sponsor, view.decided_by) if by),
        decides=decides,
    )


@router.post(f"{_CALLS}/{{call_approval_id}}/approve")
@console_page
async def approve(visit: VisitDep, call_approval_id: str) -> Response:
    """Approve the call that the form was shown with."""
    await approve_call(call_approval_id, visit.call, await _decision(visit))
    return redirect_response(f"{_CALLS}/{call_approval_id}")


@router.post(f"{_CALLS}/{{call_approval_id}}/deny")
@console_page
async def deny(visit: VisitDep, call_approval_id: str) -> Response:
    await deny_call(call_approval_id, visit.call, await _decision(visit))
    return redirect_response(f"{_CALLS}/{call_approval_id}")


async def _decision(visit: ConsoleVisit) -> CallDecisionBody:
    note = (await visit.read_form()).get("note", "")
    _require_admin(visit)
    return CallDecisionBody(note=note or None)


@router.get(f"{_AGENTS}/{{name}}/stop")
@console_page
async def show_stop(visit: VisitDep, name: str) -> Response:
    """How far its last stop has come, and the form to stop it."""
    call = await require_auditor(visit.call)
    agent = await get_agent(name, call)
    try:
        stop = await last_stop(call, name)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        stop = None
    async with call.api.store.read() as tx:
        waiting = await tx.call_approvals.count_waiting(call.tenant, AppId(agent.id))
    return visit.show(
        "agent_stop.html",
        f"Stop {name}",
        it=agent,
        stop=stop,
        waiting=waiting,
        administers=_administers(visit),
        names=await visit.names_of([agent.sponsor, *([] if stop is None else [stop.by])]),
    )


@router.post(f"{_AGENTS}/{{name}}/stop")
@console_page
async def stop(visit: VisitDep, name: str) -> Response:
    """Stop the agent."""
    fields = await visit.read_form()
    _require_admin(visit)
    wanted = StopBody(reason=fields.get("reason") or "stopped", revoke_connections="revoke" in fields)
    view = await stop_agent(name, visit.call, wanted)
    return redirect_response(f"{_AGENTS}/{view.agent}/stop")


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())


def _require_admin(visit: ConsoleVisit) -> None:
    visit.call.require_permit(Action.ADMIN, of=Target())
