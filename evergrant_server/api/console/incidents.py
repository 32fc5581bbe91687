"""`/console/incidents`: what was ordered and how far it is, a plan before the order, and the report."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.http.models import Body, Slug, UtcDatetime
from evergrant_server.api.incidents import (
    IncidentBody,
    IncidentView,
    get_incident,
    get_incident_plan,
    get_incident_report,
    list_incident_connections,
    list_incidents,
    open_incident,
    pause_incident,
    resume_incident,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.connections.incidents import IncidentKind
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_INCIDENTS = "/console/incidents"
_MOMENTS = ("since", "until")


class _Scope(Body):
    """As the form of a plan has it."""

    kind: IncidentKind
    integration: Slug | None = None
    app: Slug | None = None
    since: UtcDatetime | None = None
    until: UtcDatetime | None = None


@router.get(_INCIDENTS)
@console_page
async def show_incidents(visit: VisitDep, cursor: str = "") -> Response:
    """A page of the tenant's incidents, and the form that plans one."""
    call = await require_auditor(visit.call)
    incidents = await list_incidents(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "incidents.html",
        "Incidents",
        incidents=incidents.items,
        **pages_of(_INCIDENTS, cursor, incidents.next_cursor),
    )


@router.get(f"{_INCIDENTS}/plan")
@console_page
async def show_plan(
    visit: VisitDep,
    kind: str = IncidentKind.BREACH.value,
    integration: str = "",
    app: str = "",
    since: str = "",
    until: str = "",
) -> Response:
    """What an incident would be about and what would follow, and the form that orders it."""
    fields = {"kind": kind, "integration": integration, "app": app, "since": since, "until": until}
    scope = _Scope.model_validate(_filled(fields))
    planned = await get_incident_plan(await require_auditor(visit.call), **dict(scope))
    return visit.show(
        "incident_plan.html",
        "What would follow",
        plan=planned,
        fields=fields,
        administers=_administers(visit),
    )


@router.post(_INCIDENTS)
@console_page
async def order(visit: VisitDep) -> Response:
    """Order what was planned."""
    fields = await visit.read_form()
    values = _filled(fields)
    values |= {name: fields.get(name, "") for name in ("reason", "confirm")}
    body = IncidentBody.model_validate(values | {"roots_replaced": fields.get("roots_replaced") == "yes"})
    answer = await open_incident(body, await require_tenant_admin(visit.call))
    incident = IncidentView.model_validate_json(bytes(answer.body))
    return redirect_response(f"{_INCIDENTS}/{incident.id}")


@router.get(f"{_INCIDENTS}/{{incident_id}}")
@console_page
async def show_incident(visit: VisitDep, incident_id: str, cursor: str = "") -> Response:
    """How far an incident is, its connections, and what a person has to do."""
    call = await require_auditor(visit.call)
    incident = await get_incident(incident_id, call)
    connections = await list_incident_connections(incident_id, call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "incident.html",
        "Incident",
        incident=incident,
        connections=connections.items,
        names=await visit.names_of([incident.by]),
        administers=_administers(visit),
        **pages_of(f"{_INCIDENTS}/{incident_id}", cursor, connections.next_cursor),
    )


@router.post(f"{_INCIDENTS}/{{incident_id}}/pause")
@console_page
async def pause(visit: VisitDep, incident_id: str) -> Response:
    await visit.read_form()
    await pause_incident(incident_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_INCIDENTS}/{incident_id}")


@router.post(f"{_INCIDENTS}/{{incident_id}}/resume")
@console_page
async def resume(visit: VisitDep, incident_id: str) -> Response:
    await visit.read_form()
    await resume_incident(incident_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_INCIDENTS}/{incident_id}")


@router.get(f"{_INCIDENTS}/{{incident_id}}/report")
@console_page
async def download_report(visit: VisitDep, incident_id: str) -> Response:
    """The signed report, as a file."""
    return await get_incident_report(incident_id, await require_auditor(visit.call))


def _filled(fields: dict[str, str]) -> dict[str, Any]:
    """The fields of a scope that are filled in; a moment of a form is in UTC."""
    values = {name: fields[name] for name in _Scope.model_fields if fields.get(name)}
    return values | {name: f"{text}Z" for name, text in values.items() if name in _MOMENTS}


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())
