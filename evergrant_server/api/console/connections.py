"""`/console/connections`: the list, and one connection's story."""

from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.audit import AuditView, connection_records
from evergrant_server.api.connections.history import get_connection_history
from evergrant_server.api.connections.models import ConnectionView
from evergrant_server.api.connections.routes import get_connection, list_connections
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.models import Page
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.story import tell
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_RECORDS = 40
_FILTERS = ("integration", "subject", "state", "reference")
_LONGEST = 255
SAID = {
    "revoked": "The revocation is requested. No token is leased from now on.",
    "refreshed": "The connection is refreshed.",
    "unchanged": "It was refreshed already, or its provider can't replace a valid token.",
    "confirmed": "The consent is confirmed.",
    "chosen": "The account is chosen.",
}


@router.get("/console")
async def open_console() -> Response:
    return redirect_response("/console/connections")


@router.get("/console/connections")
@console_page
async def show_connections(
    visit: VisitDep,
    integration: str = "",
    subject: str = "",
    state: str = "",
    reference: str = "",
    cursor: str = "",
) -> Response:
    """A page of the connections that the visitor's permits cover."""
    wanted = dict(zip(_FILTERS, (integration, subject, state, reference), strict=True))
    filters: dict[str, Any] = {name: value[:_LONGEST].strip() or None for name, value in wanted.items()}
    if filters["state"] is not None:
        filters["state"] = chosen(LifecycleState, filters["state"], "state")
    found = await list_connections(visit.call, **filters, limit=ROWS, cursor=cursor or None)
    kept = {name: str(value) for name, value in filters.items() if value is not None}
    return visit.show(
        "connections.html",
        "Connections",
        found=found,
        filters={name: kept.get(name, "") for name in _FILTERS},
        filtered=bool(kept),
        states=list(LifecycleState),
        **pages_of("/console/connections", cursor, found.next_cursor, **kept),
        connects=visit.call.allows(Action.CONNECT, Target()),
    )


@router.get("/console/connections/{connection_id}")
@console_page
async def show_connection(
    visit: VisitDep, connection_id: str, said: str = "", cursor: str = "", before: str = ""
) -> Response:
    """One connection: its state, what may be done, and its story."""
    call = visit.call
    view = await get_connection(connection_id, call)
    target = Target(view.integration, view.provider, view.subject, view.id)
    records, until = Page[AuditView](items=[]), _moment(before)
    story, live = None, True
    if call.may_audit(target) or call.allows(Action.CONNECT, target):
        records = await connection_records(call, view.id, _RECORDS, cursor or None, newest_first=True)
        timeline = await get_connection_history(view.id, call)
        live = timeline.live
        story = tell(records.items, timeline.items, until=until, is_last=records.next_cursor is None)
    older = None
    if records.next_cursor is not None:
        place = {"cursor": records.next_cursor, "before": records.items[-1].at.isoformat()}
        older = f"?{urlencode(place)}"
    return visit.show(
        "connection.html",
        f"{view.subject} at {view.integration}",
        it=view,
        acts=possible_acts(visit, view),
        connects=call.allows(Action.CONNECT, target),
        said=SAID.get(said),
        story=story,
        people=await visit.names_of(it.by for it in records.items),
        live=live,
        older=older,
        first_page=bool(cursor),
        ui=_workflow_page(visit, view) if call.may_audit(target) else None,
    )


def possible_acts(visit: ConsoleVisit, view: ConnectionView) -> tuple[str, ...]:
    """What the visitor may do with the connection in its state."""
    call, target = visit.call, Target(view.integration, view.provider, view.subject, view.id)
    may = {it for it in (Action.TOKEN, Action.CONNECT, Action.ADMIN) if call.allows(it, target)}
    if view.state.is_final or view.state is LifecycleState.REVOKING:
        return ()
    acts = ("reconnect",) if Action.CONNECT in may else ()
    if acts and view.choices and view.state is LifecycleState.ACTIVE:
        acts = ("choose", *acts)
    if may and view.state is LifecycleState.ACTIVE:
        acts += ("refresh",)
    return acts + (("revoke",) if may - {Action.TOKEN} else ())


def _moment(text: str) -> datetime | None:
    """When the page before ended; None for anything but a moment with a zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _workflow_page(visit: ConsoleVisit, view: ConnectionView) -> str | None:
    """The workflow's page in the Temporal UI."""
    settings = visit.api.settings
    if not settings.temporal_ui_url:
        return None
    id = quote(connection_workflow_id(visit.call.tenant, ConnectionId(view.id)), safe="")
    namespace = quote(settings.temporal_namespace, safe="")
    return f"{settings.temporal_ui_url.rstrip('/')}/namespaces/{namespace}/workflows/{id}"
