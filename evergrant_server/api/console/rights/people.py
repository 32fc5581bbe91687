"""`/console/people`: who is logged in, where people log in, and which of their groups have which role."""

from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form, require_typed
from evergrant_server.api.console.typed import lines_of, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.integrations.routes import list_integrations
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.people.login_rules import (
    AdminLoginBody,
    AdminLoginView,
    delete_admin_login,
    get_admin_login,
    put_admin_login,
)
from evergrant_server.api.people.sessions import end_session, get_session, list_sessions
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.people.roles import ROLE_ACTIONS, PersonRole
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_PEOPLE, _LOGIN = "/console/people", "/console/people-login"
_MOST_INTEGRATIONS = _MOST_COUNTED = 200
_FIELDS = ("integration", "groups_claim", "scopes", *(f"roles.{role.value}" for role in PersonRole))
DONE = {
    "ended": "The session has ended. Requests with it are refused at once.",
    "login-saved": "It is saved. The sessions of all people have ended, but for those of the host.",
    "login-deleted": "No person can log in any more, and their sessions have ended.",
}


@router.get(_PEOPLE)
@console_page
async def show_people(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """Where people log in, their roles by group, and a page of their sessions."""
    call = await require_auditor(visit.call)
    sessions = await list_sessions(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "people.html",
        "People",
        sessions=sessions.items,
        login=await _login(visit),
        roles=ROLE_ACTIONS,
        own=visit.session_id,
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(_PEOPLE, cursor, sessions.next_cursor),
    )


async def _login(visit: ConsoleVisit) -> AdminLoginView | None:
    """None where no people log in."""
    try:
        return await get_admin_login(visit.call)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        return None


@router.get(f"{_PEOPLE}/{{session_id}}/end")
@console_page
async def show_end_session(visit: VisitDep, session_id: str) -> Response:
    """Whose session it is, and the form that ends it."""
    session = await get_session(session_id, await require_tenant_admin(visit.call))
    is_own = session.id == visit.session_id
    return visit.show_form("session_end.html", "End this session?", Form(), session=session, is_own=is_own)


@router.post(f"{_PEOPLE}/{{session_id}}/end")
@console_page
async def end_persons_session(visit: VisitDep, session_id: str) -> Response:
    """End a person's session, at once."""
    await visit.read_form()
    await end_session(session_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_PEOPLE}?done=ended")


# --- where people log in, and their roles ---------------------------------------------------------


@router.get(_LOGIN)
@console_page
async def show_login_rule(visit: VisitDep) -> Response:
    """The form of where people log in, and of the groups of each role."""
    await require_tenant_admin(visit.call)
    login = await _login(visit)
    return await _login_form(visit, Form({} if login is None else _values_of(login)), login)


@router.post(_LOGIN)
@console_page
async def save_login_rule(visit: VisitDep) -> Response:
    """Have people log in so, which ends the sessions of before."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        await put_admin_login(_body_of(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _login_form(visit, Form.refused(fields, refusal, _FIELDS), await _login(visit))
    return redirect_response(f"{_PEOPLE}?done=login-saved")


@router.get(f"{_LOGIN}/delete")
@console_page
async def show_delete_login(visit: VisitDep) -> Response:
    """What would end if no people could log in."""
    return await _login_deletion(visit, Form())


@router.post(f"{_LOGIN}/delete")
@console_page
async def end_login(visit: VisitDep) -> Response:
    """Let no people log in, where the integration's name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, (await get_admin_login(call)).integration, "integration")
        await delete_admin_login(call)
    except Failure as refusal:
        return await _login_deletion(visit, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_PEOPLE}?done=login-deleted")


async def _login_form(visit: ConsoleVisit, form: Form, login: AdminLoginView | None) -> Response:
    call = await require_tenant_admin(visit.call)
    integrations = (await list_integrations(call, limit=_MOST_INTEGRATIONS)).items
    return visit.show_form(
        "people_login.html",
        "Where people log in",
        form,
        login=login,
        integrations=[integration.name for integration in integrations if integration.issuer],
        roles=list(PersonRole),
    )


async def _login_deletion(visit: ConsoleVisit, form: Form) -> Response:
    login = await get_admin_login(await require_tenant_admin(visit.call))
    sessions = await list_sessions(visit.call, limit=_MOST_COUNTED)
    live = sum(session.live for session in sessions.items)
    most = " at least" if sessions.next_cursor else ""
    counts = [(live, f"live session{most}", f"live sessions{most}")]
    return visit.show_form(
        "people_login_delete.html", "Let no people log in?", form, login=login, counts=counts
    )


def _body_of(fields: Mapping[str, str]) -> AdminLoginBody:
    """Raises ValidationError."""
    roles = {role.value: lines_of(fields, f"roles.{role.value}") for role in PersonRole}
    values = {
        "integration": fields.get("integration", ""),
        "roles": {role: groups for role, groups in roles.items() if groups},
        "scopes": words_in(fields, "scopes"),
    }
    claim = fields.get("groups_claim")
    return AdminLoginBody.model_validate(values | ({"groups_claim": claim} if claim else {}))


def _values_of(login: AdminLoginView) -> dict[str, str]:
    values = {"integration": login.integration, "groups_claim": login.groups_claim}
    values["scopes"] = " ".join(login.scopes)
    return values | {f"roles.{role.value}": "\n".join(groups) for role, groups in login.roles.items()}
