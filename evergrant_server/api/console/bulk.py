"""`/console/bulk`: one act on many connections: what it would be about, the order, and how far it is."""

from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

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
from evergrant_server.api.console.forms import Form
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.connections.bulk import BulkAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_BULK = "/console/bulk"
_FILTER = ("integration", "state", "failing", "search", "connections")
_TYPED = ("label", "confirm", "reason")
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
    **dict.fromkeys(("reconnect", "taken"), "wait"),
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
