"""What waits for a decision, in the console: requests for access, and commands and calls to approve."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.decisions.access_requests import (
    AccessRequestView,
    ApprovalBody,
    NoteBody,
    approve_access_request,
    deny_access_request,
    get_access_request,
    list_access_requests,
    withdraw_access_request,
)
from evergrant_server.api.decisions.approvals import approve as approve_command
from evergrant_server.api.decisions.approvals import list_approvals
from evergrant_server.api.decisions.call_approvals import list_call_approvals
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.decisions import AccessRequestState, CallApprovalState
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_HOUR = 3600
DONE = {
    "approved": "It is approved, and holds from now on.",
    "denied": "It is denied.",
    "withdrawn": "It is withdrawn.",
    "command": "The command is approved. Who sent it sends it again: it is then carried out.",
}


@router.get("/console/requests")
@console_page
async def show_requests(visit: VisitDep, state: str = "waiting", cursor: str = "") -> Response:
    """A page of requests: the tenant's for an admin or an auditor, else the app's own."""
    wanted = chosen(AccessRequestState, state, "state") if state else None
    requests = await list_access_requests(visit.call, wanted, limit=ROWS, cursor=cursor or None)
    commands = (await list_approvals(visit.call)).items if visit.call.may_audit(Target()) else []
    return visit.show(
        "requests.html",
        "Access requests",
        found=requests,
        state=state,
        states=list(AccessRequestState),
        commands=commands,
        decides=visit.call.allows(Action.ADMIN, Target()),
        own=visit.call.context.by,
        people=await visit.names_of(
            (*(request.requested_by for request in requests.items), *(command.by for command in commands))
        ),
        **pages_of("/console/requests", cursor, requests.next_cursor, state=state),
    )


@router.get("/console/requests/{request_id}")
@console_page
async def show_request(visit: VisitDep, request_id: str, done: str = "") -> Response:
    """One request: what it asks for, and what this visitor may decide."""
    view = await get_access_request(request_id, visit.call)
    return visit.show(
        "request.html",
        f"{view.app}: {view.kind.value}",
        it=view,
        acts=_possible_acts(visit, view),
        said=DONE.get(done),
        people=await visit.names_of(by for by in (view.requested_by, view.decided_by) if by),
    )


def _possible_acts(visit: ConsoleVisit, request: AccessRequestView) -> tuple[str, ...]:
    """What the visitor may do with it. Who gets the access, or asked for it, doesn't approve."""
    if request.state is not AccessRequestState.WAITING:
        return ()
    call = visit.call
    decides, is_own = call.allows(Action.ADMIN, Target()), request.app == call.caller.app.name
    asked = is_own or request.requested_by == call.context.by
    approve = ("approve",) if decides and not asked else ()
    return approve + (("deny",) if decides else ()) + (("withdraw",) if decides or is_own else ())


@router.post("/console/requests/{request_id}/approve")
@console_page
async def approve(visit: VisitDep, request_id: str) -> Response:
    """Give the access, or remove the permit that goes unused."""
    fields = await visit.read_form()
    body = ApprovalBody(lifetime=_seconds(fields.get("hours", "")), note=fields.get("note") or None)
    await approve_access_request(request_id, await require_tenant_admin(visit.call), body)
    return _back_to(request_id, "approved")


@router.post("/console/requests/{request_id}/deny")
@console_page
async def deny(visit: VisitDep, request_id: str) -> Response:
    """Deny the request."""
    body = NoteBody(note=(await visit.read_form()).get("note") or None)
    await deny_access_request(request_id, await require_tenant_admin(visit.call), body)
    return _back_to(request_id, "denied")


@router.post("/console/requests/{request_id}/withdraw")
@console_page
async def withdraw(visit: VisitDep, request_id: str) -> Response:
    """Withdraw the request."""
    await visit.read_form()
    await withdraw_access_request(request_id, visit.call)
    return _back_to(request_id, "withdrawn")


@router.get("/console/approvals")
@console_page
async def show_approvals(visit: VisitDep, done: str = "") -> Response:
    """The commands that wait for a second admin, and the first calls that wait for anybody."""
    call = await require_auditor(visit.call)
    commands = (await list_approvals(call)).items
    calls = await list_call_approvals(call, state=CallApprovalState.WAITING, limit=ROWS)
    return visit.show(
        "approvals.html",
        "Approvals",
        commands=commands,
        calls=calls.items,
        more_calls=calls.next_cursor is not None,
        said=DONE.get(done),
        decides=call.allows(Action.ADMIN, Target()),
        own=call.context.by,
        people=await visit.names_of(command.by for command in commands),
        names=await visit.names_of(wanted.sponsor for wanted in calls.items if wanted.sponsor),
    )


@router.post("/console/approvals/{approval_id}")
@console_page
async def approve_waiting_command(visit: VisitDep, approval_id: str) -> Response:
    """Approve another app's command, which that app then sends again."""
    await visit.read_form()
    await approve_command(approval_id, await require_tenant_admin(visit.call))
    return redirect_response("/console/approvals?done=command")


def _seconds(hours: str) -> float | None:
    if not hours:
        return None
    try:
        return float(hours) * _HOUR
    except ValueError:
        raise invalid_request("hours", "Use a number of hours, such as 8.") from None


def _back_to(request_id: str, done: str) -> Response:
    return redirect_response(f"/console/requests/{request_id}?done={done}")
