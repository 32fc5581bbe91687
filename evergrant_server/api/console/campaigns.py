"""`/console/campaigns`: many subjects consent to another client: forecast, order, progress and end."""

from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.campaigns import (
    CampaignBody,
    CampaignEndBody,
    CampaignView,
    begin_campaign,
    end_campaign,
    get_campaign,
    get_campaign_plan,
    get_campaign_report,
    list_campaign_connections,
    list_campaigns,
    pause_campaign,
    resume_campaign,
    undo_campaign,
)
from evergrant_server.api.console.forms import Form, number_of, require_typed
from evergrant_server.api.console.typed import whole_number, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_CAMPAIGNS = "/console/campaigns"
_TEXTS = ("integration", "successor", "reason", "end")
_HOURS = {"first_hours": "first_wave", "every_hours": "every"}
_FIELDS = (*_TEXTS, *_HOURS, "wave_size", "remind_days", "days")
_ALIASES = {"first_wave": "first_hours", "every": "every_hours", "remind": "remind_days", "lasts": "days"}
_DAY_S = 86_400.0


@router.get(_CAMPAIGNS)
@console_page
async def show_campaigns(visit: VisitDep, cursor: str = "") -> Response:
    """The tenant's campaigns, and the form that plans one."""
    return await _list(visit, Form(), cursor)


@router.get(f"{_CAMPAIGNS}/plan")
@console_page
async def show_plan(visit: VisitDep) -> Response:
    """The waves that would follow, by the leases of the last month, and the form that orders them."""
    sent = visit.request.query_params
    fields = {name: sent[name] for name in _FIELDS if sent.get(name)}
    if not fields:
        return await _list(visit, Form())
    try:
        return await _plan(visit, fields, Form())
    except (Failure, ValidationError) as refusal:
        return await _list(visit, Form.refused(fields, refusal, _FIELDS, _ALIASES))


@router.post(_CAMPAIGNS)
@console_page
async def order(visit: VisitDep) -> Response:
    """Order what was planned, for the integration whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, fields.get("integration", ""), "integration")
        answer = await begin_campaign(_body(fields), call)
    except (Failure, ValidationError) as refusal:
        named = {name: fields[name] for name in _FIELDS if fields.get(name)}
        return await _plan(visit, named, Form.refused({}, refusal, ("confirm",)))
    view = CampaignView.model_validate_json(bytes(answer.body))
    return redirect_response(f"{_CAMPAIGNS}/{view.id}")


async def _list(visit: ConsoleVisit, form: Form, cursor: str = "") -> Response:
    call = await require_auditor(visit.call)
    campaigns = await list_campaigns(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "campaigns.html",
        "Campaigns",
        status=form.status,
        campaigns=campaigns.items,
        form=form,
        administers=_administers(visit),
        **pages_of(_CAMPAIGNS, cursor, campaigns.next_cursor),
    )


async def _plan(visit: ConsoleVisit, fields: dict[str, str], form: Form) -> Response:
    body = _body(fields)
    planned = await get_campaign_plan(
        await require_auditor(visit.call),
        body.integration,
        body.successor,
        body.wave_size,
        body.every,
        body.first_wave,
    )
    return visit.show(
        "campaign_plan.html",
        "What would follow",
        status=form.status,
        plan=planned,
        body=body,
        fields=fields,
        form=form,
        administers=_administers(visit),
    )


@router.get(f"{_CAMPAIGNS}/{{campaign_id}}")
@console_page
async def show_campaign(visit: VisitDep, campaign_id: str, cursor: str = "") -> Response:
    """How far a campaign is, wave by wave, and what became of each connection."""
    call = await require_auditor(visit.call)
    campaign = await get_campaign(campaign_id, call)
    connections = await list_campaign_connections(campaign_id, call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "campaign.html",
        "Campaign",
        campaign=campaign,
        connections=connections.items,
        administers=_administers(visit),
        **pages_of(f"{_CAMPAIGNS}/{campaign_id}", cursor, connections.next_cursor),
    )


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/pause")
@console_page
async def pause(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await pause_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/resume")
@console_page
async def resume(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await resume_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/undo")
@console_page
async def undo(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await undo_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/end")
@console_page
async def end(visit: VisitDep, campaign_id: str) -> Response:
    fields = await visit.read_form()
    body = CampaignEndBody.model_validate({"end": fields.get("end") or None})
    await end_campaign(campaign_id, await require_tenant_admin(visit.call), body)
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.get(f"{_CAMPAIGNS}/{{campaign_id}}/report")
@console_page
async def download_report(visit: VisitDep, campaign_id: str) -> Response:
    """The signed report, as a file."""
    return await get_campaign_report(campaign_id, await require_auditor(visit.call))


def _body(fields: dict[str, str]) -> CampaignBody:
    """Raises Failure INVALID_REQUEST and ValidationError for what can't be."""
    values: dict[str, Any] = {name: fields[name] for name in _TEXTS if fields.get(name)}
    values["confirm"] = fields.get("confirm")
    for field, member in _HOURS.items():
        hours = number_of(fields, field)
        values |= {} if hours is None else {member: hours * 3600.0}
    size, days = whole_number(fields, "wave_size"), number_of(fields, "days")
    values |= {} if size is None else {"wave_size": size}
    values |= {} if days is None else {"lasts": days * _DAY_S}
    if fields.get("remind_days"):
        values["remind"] = _days(words_in(fields, "remind_days"))
    return CampaignBody.model_validate(values)


def _days(words: list[str]) -> tuple[float, ...]:
    numbers = [number_of({"remind_days": word}, "remind_days") for word in words]
    if None in numbers:
        raise invalid_request("remind_days", "Use numbers, such as 3 7.")
    return tuple(_DAY_S * number for number in numbers if number is not None)


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())
