"""`/console/agents`: who the agents are, what they ask for, and how one is stopped."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.agents.routes import StopBody, get_agent, last_stop, list_agents, stop_agent
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
from evergrant_server.api.http.call import require_auditor
from evergrant_server.api.pages.browser import APPROVAL_PAGES, redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.decisions import CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_AGENTS, _CALLS = "/console/agents", APPROVAL_PAGES


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
        **pages_of(_AGENTS, cursor, agents.next_cursor),
    )


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
        decides=decides,
        old_login=_has_old_login(visit),
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


def _has_old_login(visit: ConsoleVisit) -> bool:
    """Whether a person has to log in again before approving."""
    session = visit.call.caller.session
    return session is not None and not session.is_stepped_up(visit.call.now)


def _require_admin(visit: ConsoleVisit) -> None:
    visit.call.require_permit(Action.ADMIN, of=Target())
