"""`/console/approvals`: what waits for a person: commands of other admins, and calls of agents."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import ROWS, VisitDep, console_page
from evergrant_server.api.decisions.approvals import list_approvals
from evergrant_server.api.decisions.call_approvals import list_call_approvals
from evergrant_server.api.http.call import require_auditor
from evergrant_server.core.access import Action
from evergrant_server.core.decisions import CallApprovalState
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)


@router.get("/console/approvals")
@console_page
async def show_approvals(visit: VisitDep) -> Response:
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
        decides=call.allows(Action.ADMIN, Target()),
        own=call.context.by,
        people=await visit.names_of(command.by for command in commands),
    )
