"""`/console/leavers`: who leaves and how far it is, a plan before the order, the way back, and the report."""

from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form, number_of, require_typed
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.leavers.routes import (
    OffboardingBody,
    OffboardingView,
    begin_offboarding,
    get_offboarding,
    get_offboarding_report,
    list_offboardings,
    plan_offboarding,
    undo_offboarding,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_LEAVERS = "/console/leavers"
_NAMING = ("subject", "user", "sub")
_TEXTS = (*_NAMING, "issuer", "reason", "sponsor")
_FIELDS = (*_TEXTS, "hours")
_ALIASES = {"grace": "hours"}


@router.get(_LEAVERS)
@console_page
async def show_leavers(visit: VisitDep, cursor: str = "") -> Response:
    """Who leaves or has left, and the form that plans an offboarding."""
    return await _list(visit, Form(), cursor)


@router.get(f"{_LEAVERS}/plan")
@console_page
async def show_plan(
    visit: VisitDep,
    subject: str = "",
    user: str = "",
    issuer: str = "",
    sub: str = "",
    reason: str = "",
    hours: str = "",
    sponsor: str = "",
) -> Response:
    """What would become of each connection, and the form that orders it."""
    fields = {"subject": subject, "user": user, "issuer": issuer, "sub": sub, "reason": reason}
    fields |= {"hours": hours, "sponsor": sponsor}
    if not any(fields.values()):
        return await _list(visit, Form())
    try:
        return await _plan(visit, fields, Form())
    except (Failure, ValidationError) as refusal:
        return await _list(visit, Form.refused(fields, refusal, _FIELDS, _ALIASES))


@router.post(_LEAVERS)
@console_page
async def order(visit: VisitDep) -> Response:
    """Order what was planned, for the person whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, _name(fields), "person")
        answer = await begin_offboarding(_body(fields), call)
    except (Failure, ValidationError) as refusal:
        return await _plan(visit, fields, Form.refused({}, refusal, ("confirm",)))
    view = OffboardingView.model_validate_json(bytes(answer.body))
    return redirect_response(f"{_LEAVERS}/{view.id}")


async def _list(visit: ConsoleVisit, form: Form, cursor: str = "") -> Response:
    call = await require_auditor(visit.call)
    leavers = await list_offboardings(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "leavers.html",
        "Leavers",
        status=form.status,
        leavers=leavers.items,
        form=form,
        administers=_administers(visit),
        **pages_of(_LEAVERS, cursor, leavers.next_cursor),
    )


async def _plan(visit: ConsoleVisit, fields: dict[str, str], form: Form) -> Response:
    planned = await plan_offboarding(_body(fields), await require_auditor(visit.call))
    return visit.show(
        "leaver_plan.html",
        "What would follow",
        status=form.status,
        plan=planned,
        fields={name: fields[name] for name in _FIELDS if fields.get(name)},
        leaver=_name(fields),
        form=form,
        administers=_administers(visit),
    )


@router.get(f"{_LEAVERS}/{{offboarding_id}}")
@console_page
async def show_leaver(visit: VisitDep, offboarding_id: str) -> Response:
    """How far the offboarding of a person is, connection by connection."""
    leaver = await get_offboarding(offboarding_id, await require_auditor(visit.call))
    names = await visit.names_of([leaver.by])
    return visit.show("leaver.html", "Leaver", leaver=leaver, names=names, administers=_administers(visit))


@router.post(f"{_LEAVERS}/{{offboarding_id}}/undo")
@console_page
async def undo(visit: VisitDep, offboarding_id: str) -> Response:
    await visit.read_form()
    await undo_offboarding(offboarding_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_LEAVERS}/{offboarding_id}")


@router.get(f"{_LEAVERS}/{{offboarding_id}}/report")
@console_page
async def download_report(visit: VisitDep, offboarding_id: str) -> Response:
    """The signed report, as a file."""
    return await get_offboarding_report(offboarding_id, await require_auditor(visit.call))


def _body(fields: dict[str, str]) -> OffboardingBody:
    values: dict[str, Any] = {name: fields[name] for name in _TEXTS if fields.get(name)}
    hours = number_of(fields, "hours")
    return OffboardingBody.model_validate(values | ({} if hours is None else {"grace": hours * 3600.0}))


def _name(fields: dict[str, str]) -> str:
    """What a person types to confirm: who leaves, as the form has named them."""
    return next((fields[name] for name in _NAMING if fields.get(name)), "")


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())
