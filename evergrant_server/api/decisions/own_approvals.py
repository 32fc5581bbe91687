"""What waits for a person's decision, for their own page: judged and decided by the functions of the API's
routes.

Nothing is judged here: who may decide is who holds `admin`, by the session of people who administer.
"""

import json
from collections.abc import Mapping

from evergrant_server.access.people import person_caller, presented_secret
from evergrant_server.api.decisions.access_requests import (
    approve_access_request,
    deny_access_request,
    get_access_request,
    list_access_requests,
)
from evergrant_server.api.decisions.approvals import ApprovalView, approve, list_approvals
from evergrant_server.api.decisions.call_approvals import (
    CallApprovalView,
    approve_call,
    deny_call,
    get_call_approval,
    list_call_approvals,
    visible_call,
    visible_text,
)
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.console.pages import OwnApproval, OwnDecision
from evergrant_server.core.access import Action
from evergrant_server.core.decisions import AccessRequestKind, AccessRequestState, CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant, is_id
from evergrant_server.core.people.roles import Person
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

_MOST = 25  # of each kind


async def deciding_call(pages: SubjectPages, tenant: Tenant, person: Person) -> ApiCall | None:
    """This request as the person's with `admin`; None where the browser has no live session of people who
    administer, or that of another person or tenant.

    Raises Failure CROSS_SITE_REQUEST, TENANT_DISABLED, RATE_LIMITED.
    """
    presented = presented_secret(pages.api, pages.request)
    if presented is None or not presented[1]:
        return None
    try:
        caller = await person_caller(pages.api, pages.request)
    except Failure as failure:
        if failure.code is not ErrorCode.UNAUTHENTICATED:
            raise
        return None
    if caller is None or caller.session is None or caller.tenant != tenant:
        return None
    logged_in = caller.session.person
    if (logged_in.issuer, logged_in.sub) != (person.issuer, person.sub):
        return None
    call = ApiCall.of(pages.api, pages.request, caller)
    await pages.api.limits.count_request(pages.request.scope, caller.app)
    return call if call.allows(Action.ADMIN, Target()) else None


async def waiting_approvals(call: ApiCall) -> list[OwnApproval]:
    """The agents' calls, the requests for access and the commands that wait, without the person's own."""
    calls = await list_call_approvals(call, state=CallApprovalState.WAITING, limit=_MOST)
    requests = await list_access_requests(call, AccessRequestState.WAITING, limit=_MOST)
    commands = await list_approvals(call)
    own = call.context.by
    return [
        *(_call(view, own) for view in calls.items),
        *(
            OwnApproval(view.id, _title(view.kind, view.app, view.permit_name), view.reason, view.decide_by)
            for view in requests.items
            if view.requested_by != own
        ),
        *(
            OwnApproval(view.id, f"{_sender(view)} sends a command", view.command, view.expires_at)
            for view in commands.items
            if view.by != own and view.approved_by is None
        ),
    ]


async def shown_approval(call: ApiCall, id: str) -> OwnDecision:
    """All that is decided about. Raises Failure NOT_FOUND."""
    if is_id(id, "cap"):
        answer = await get_call_approval(id, call)
        view = CallApprovalView.model_validate_json(bytes(answer.body))
        waits = view.state is CallApprovalState.WAITING
        return OwnDecision(_call(view, call.context.by), visible_call(view.call), waits, may_deny=waits)
    if is_id(id, "req"):
        request = await get_access_request(id, call)
        waits = request.state is AccessRequestState.WAITING
        approves = waits and request.requested_by != call.context.by
        title = _title(request.kind, request.app, request.permit_name)
        lifetime = (
            "until an admin removes it" if request.lifetime is None else f"{request.lifetime:.0f} seconds"
        )
        exact = _shown({**request.permit, "lasts": lifetime})
        approval = OwnApproval(request.id, title, request.reason, request.decide_by)
        return OwnDecision(approval, exact, approves, may_deny=waits)
    commands = (await list_approvals(call)).items
    command = next((view for view in commands if view.id == id), None)
    if command is None:
        raise Failure(ErrorCode.NOT_FOUND)
    approval = OwnApproval(id, f"{_sender(command)} sends a command", command.command, command.expires_at)
    exact = _shown({"body": command.body, "what its names stand for": command.resolves_to})
    approves = command.approved_by is None and command.by != call.context.by
    return OwnDecision(approval, exact, approves, may_deny=False)


async def decide_approval(call: ApiCall, id: str, decision: str) -> None:
    """Approve or deny it. Raises Failure STEP_UP_REQUIRED, NOT_PERMITTED, INVALID_REQUEST, NOT_FOUND."""
    match id.partition("_")[0], decision:
        case "cap", "approve":
            await approve_call(id, call)
        case "cap", "deny":
            await deny_call(id, call)
        case "req", "approve":
            await approve_access_request(id, call)
        case "req", "deny":
            await deny_access_request(id, call)
        case "apr", "approve":
            await approve(id, call)
        case _:
            raise invalid_request("decision", "It can't be decided so.")


def _call(view: CallApprovalView, own: str) -> OwnApproval:
    title = f"{view.agent} asks to call {view.integration} as {view.subject}: {view.name}"
    return OwnApproval(view.id, title, view.reason, view.decide_by, is_sponsored=view.sponsor == own)


def _title(kind: AccessRequestKind, app: str, permit: str) -> str:
    removal = kind is AccessRequestKind.REMOVAL
    return f"Remove the permit {permit} of {app}?" if removal else f"{app} asks for access"


def _sender(view: ApprovalView) -> str:
    kind, _, name = view.by.partition(":")
    return "Another admin" if kind == "person" else name


def _shown(members: Mapping[str, object]) -> dict[str, str]:
    texts = {
        name: member if isinstance(member, str) else json.dumps(member, indent=2, ensure_ascii=False)
        for name, member in members.items()
        if member is not None
    }
    return {name.replace("_", " ").capitalize(): visible_text(text) for name, text in texts.items()}
