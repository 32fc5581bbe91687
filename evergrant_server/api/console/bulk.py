"""`/console/bulk`: one act on many connections; `/console/campaigns`: many consents to another client.

Of each what it would be about, the order, how far it is, and its end.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.campaigns.models import CampaignBody, CampaignEndBody, CampaignView
from evergrant_server.api.campaigns.routes import (
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
from evergrant_server.api.connections.bulk import (
    BulkBody,
    BulkOrderView,
    get_bulk_order,
    get_bulk_plan,
    list_bulk_connections,
    list_bulk_orders,
    open_bulk_order,
    pause_bulk_order,
    resume_bulk_order,
)
from evergrant_server.api.console.forms import Form, number_of, require_typed
from evergrant_server.api.console.typed import whole_number, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.connections.bulk import BulkAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_BULK = "/console/bulk"
_FILTER = ("integration", "state", "failing", "search", "connections")
_TYPED = ("label", "confirm", "reason")
_CAMPAIGNS = "/console/campaigns"
_CAMPAIGN_TEXTS = ("integration", "successor", "reason", "end")
_HOURS = {"first_hours": "first_wave", "every_hours": "every"}
_CAMPAIGN_FIELDS = (*_CAMPAIGN_TEXTS, *_HOURS, "wave_size", "remind_days", "days")
_ALIASES = {
    "first_wave": "first_hours",
    "every": "every_hours",
    "remind": "remind_days",
    "lasts": "days",
}
_DAY_S = 86_400.0
WORDS = {
    BulkAction.REFRESH: ("Refresh", "refreshed"),
    BulkAction.RECONNECT: ("Ask for new consents", "asked for"),
    BulkAction.REVOKE: ("Revoke for good", "revoked"),
    BulkAction.LABEL: ("Give a label", "labelled"),
}
TONES = {
    **dict.fromkeys(("confirmed", "renewed", "asked", "labelled"), "good"),
    **dict.fromkeys(("nothing_held", "gone", "well"), "ended"),
    **dict.fromkeys(("not_supported", "unknown", "failed"), "bad"),
    **dict.fromkeys(("reconnect", "taken", "held"), "wait"),
}


@router.get(_BULK)
@console_page
async def show_bulk_orders(visit: VisitDep, cursor: str = "") -> Response:
    """A page of the tenant's bulk orders."""
    call = await require_auditor(visit.call)
    orders = await list_bulk_orders(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "bulk_orders.html",
        "Bulk orders",
        orders=orders.items,
        words=WORDS,
        **pages_of(_BULK, cursor, orders.next_cursor),
    )


@router.get(f"{_BULK}/plan")
@console_page
async def show_bulk_plan(
    visit: VisitDep,
    action: str = BulkAction.REFRESH.value,
    whole: str = "",
    integration: str = "",
    state: str = "",
    failing: str = "",
    search: str = "",
) -> Response:
    """What an order would be about, and the form that gives it: for the ticked rows, or for a filter."""
    ticked = [] if whole == "yes" else visit.request.query_params.getlist("connection")
    fields = {"integration": integration, "state": state, "failing": failing, "search": search}
    if whole != "yes":
        fields = {"connections": " ".join(ticked)}
    return await _show_plan(visit, Form({"action": action, **fields}))


async def _show_plan(visit: ConsoleVisit, form: Form) -> Response:
    """The page of a plan: of nothing, where nothing is ticked."""
    call = await require_auditor(visit.call)
    action = chosen(BulkAction, form.values.get("action", ""), "action")
    fields = {name: form.values[name] for name in _FILTER if form.values.get(name)}
    is_of_nothing = form.values.get("connections") == ""
    plan = None if is_of_nothing else await get_bulk_plan(call, action, **_filter(fields))
    return visit.show_form(
        "bulk_plan.html",
        "What would follow",
        form,
        plan=plan,
        fields=fields,
        words=WORDS[action],
        administers=visit.call.allows(Action.ADMIN, Target()),
    )


@router.post(_BULK)
@console_page
async def order_bulk(visit: VisitDep) -> Response:
    """Order what was planned."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    values = _filter({name: fields.get(name, "") for name in _FILTER})
    if "connections" in values:
        values["connections"] = tuple(values["connections"].split())
    values |= {name: fields[name] for name in ("action", *_TYPED) if fields.get(name)}
    try:
        answer = await open_bulk_order(BulkBody.model_validate(values), call)
    except (Failure, ValidationError) as refusal:
        return await _show_plan(visit, Form.refused(fields, refusal, _TYPED))
    order = BulkOrderView.model_validate_json(bytes(answer.body))
    return redirect_response(f"{_BULK}/{order.id}")


@router.get(f"{_BULK}/{{bulk_id}}")
@console_page
async def show_bulk_order(visit: VisitDep, bulk_id: str, cursor: str = "") -> Response:
    """How far an order is, and what became of each connection."""
    call = await require_auditor(visit.call)
    order = await get_bulk_order(bulk_id, call)
    connections = await list_bulk_connections(bulk_id, call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "bulk_order.html",
        WORDS[order.action][0],
        order=order,
        connections=connections.items,
        words=WORDS[order.action],
        tones=TONES,
        names=await visit.names_of([order.by]),
        administers=visit.call.allows(Action.ADMIN, Target()),
        **pages_of(f"{_BULK}/{bulk_id}", cursor, connections.next_cursor),
    )


@router.post(f"{_BULK}/{{bulk_id}}/pause")
@console_page
async def pause_bulk(visit: VisitDep, bulk_id: str) -> Response:
    return await _rest(visit, bulk_id, paused=True)


@router.post(f"{_BULK}/{{bulk_id}}/resume")
@console_page
async def resume_bulk(visit: VisitDep, bulk_id: str) -> Response:
    return await _rest(visit, bulk_id, paused=False)


async def _rest(visit: ConsoleVisit, bulk_id: str, *, paused: bool) -> Response:
    await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await (pause_bulk_order if paused else resume_bulk_order)(bulk_id, call)
    return redirect_response(f"{_BULK}/{bulk_id}")


def _filter(fields: dict[str, str]) -> dict[str, Any]:
    """The fields of a filter that are filled in, as the API takes them."""
    values: dict[str, Any] = {name: text for name, text in fields.items() if text}
    if "state" in values:
        values["state"] = chosen(LifecycleState, values["state"], "state")
    if "failing" in values:
        values["failing"] = values["failing"] == "yes"
    return values


@router.get(_CAMPAIGNS)
@console_page
async def show_campaigns(visit: VisitDep, cursor: str = "") -> Response:
    """The tenant's campaigns, and the form that plans one."""
    return await _list_campaigns(visit, Form(), cursor)


@router.get(f"{_CAMPAIGNS}/plan")
@console_page
async def show_campaign_plan(visit: VisitDep) -> Response:
    """The waves that would follow, by the leases of the last month, and the form that orders them."""
    sent = visit.request.query_params
    fields = {name: sent[name] for name in _CAMPAIGN_FIELDS if sent.get(name)}
    if not fields:
        return await _list_campaigns(visit, Form())
    try:
        return await _show_campaign_plan(visit, fields, Form())
    except (Failure, ValidationError) as refusal:
        return await _list_campaigns(visit, Form.refused(fields, refusal, _CAMPAIGN_FIELDS, _ALIASES))


@router.post(_CAMPAIGNS)
@console_page
async def order_campaign(visit: VisitDep) -> Response:
    """Order what was planned, for the integration whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, fields.get("integration", ""), "integration")
        answer = await begin_campaign(_campaign_body(fields), call)
    except (Failure, ValidationError) as refusal:
        named = {name: fields[name] for name in _CAMPAIGN_FIELDS if fields.get(name)}
        return await _show_campaign_plan(visit, named, Form.refused({}, refusal, ("confirm",)))
    view = CampaignView.model_validate_json(bytes(answer.body))
    return redirect_response(f"{_CAMPAIGNS}/{view.id}")


async def _list_campaigns(visit: ConsoleVisit, form: Form, cursor: str = "") -> Response:
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


async def _show_campaign_plan(visit: ConsoleVisit, fields: dict[str, str], form: Form) -> Response:
    body = _campaign_body(fields)
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
async def pause_one_campaign(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await pause_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/resume")
@console_page
async def resume_one_campaign(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await resume_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/undo")
@console_page
async def undo_one_campaign(visit: VisitDep, campaign_id: str) -> Response:
    await visit.read_form()
    await undo_campaign(campaign_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.post(f"{_CAMPAIGNS}/{{campaign_id}}/end")
@console_page
async def end_one_campaign(visit: VisitDep, campaign_id: str) -> Response:
    fields = await visit.read_form()
    body = CampaignEndBody.model_validate({"end": fields.get("end") or None})
    await end_campaign(campaign_id, await require_tenant_admin(visit.call), body)
    return redirect_response(f"{_CAMPAIGNS}/{campaign_id}")


@router.get(f"{_CAMPAIGNS}/{{campaign_id}}/report")
@console_page
async def download_campaign_report(visit: VisitDep, campaign_id: str) -> Response:
    """The signed report, as a file."""
    return await get_campaign_report(campaign_id, await require_auditor(visit.call))


def _campaign_body(fields: dict[str, str]) -> CampaignBody:
    """Raises Failure INVALID_REQUEST and ValidationError for what can't be."""
    values: dict[str, Any] = {name: fields[name] for name in _CAMPAIGN_TEXTS if fields.get(name)}
    values["confirm"] = fields.get("confirm")
    for field, member in _HOURS.items():
        hours = number_of(fields, field)
        values |= {} if hours is None else {member: hours * 3600.0}
    size, days = whole_number(fields, "wave_size"), number_of(fields, "days")
    values |= {} if size is None else {"wave_size": size}
    values |= {} if days is None else {"lasts": days * _DAY_S}
    if fields.get("remind_days"):
        values["remind"] = _campaign_days(words_in(fields, "remind_days"))
    return CampaignBody.model_validate(values)


def _campaign_days(words: list[str]) -> tuple[float, ...]:
    numbers = [number_of({"remind_days": word}, "remind_days") for word in words]
    if None in numbers:
        raise invalid_request("remind_days", "Use numbers, such as 3 7.")
    return tuple(_DAY_S * number for number in numbers if number is not None)


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())
