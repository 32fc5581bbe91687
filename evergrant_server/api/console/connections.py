"""`/console/connections`: the list, one connection's story, and what a visitor does with it.

Each act calls the function behind the route of the API, and has nothing of its own but words.
"""

from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.audit import AuditView, connection_records
from evergrant_server.api.connections.commands import (
    choose_account,
    confirm_consent,
    reauthorize_connection,
    revoke_connection,
)
from evergrant_server.api.connections.history import get_connection_history
from evergrant_server.api.connections.models import (
    ChooseBody,
    ConfirmBody,
    ConnectionBody,
    ConnectionTotals,
    ConnectionView,
    ReauthorizeBody,
    RevokeBody,
)
from evergrant_server.api.connections.routes import (
    create_connection,
    get_connection,
    get_connection_totals,
    list_connections,
)
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.erasures import ErasureBody, create_erasure, get_erasure
from evergrant_server.api.http.call import require_auditor
from evergrant_server.api.http.models import Page
from evergrant_server.api.leases.models import RefreshBody
from evergrant_server.api.leases.refresh_command import refresh_connection
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.next_steps import state_words
from evergrant_server.console.story import tell
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.secret import Secret
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request
from evergrant_server.store.connections.search import ListOrder

router = APIRouter(include_in_schema=False)

_RECORDS = 40
_FILTERS = ("integration", "search", "state", "failing", "reference")
_LONGEST = 255
DONE = {
    "revoked": "The revocation is requested. No token is leased from now on.",
    "refreshed": "The connection is refreshed.",
    "unchanged": "It was refreshed already, or its provider can't replace a valid token.",
    "confirmed": "The consent is confirmed.",
    "chosen": "The account is chosen.",
}


@router.get("/console/connections")
@console_page
async def show_connections(
    visit: VisitDep,
    integration: str = "",
    search: str = "",
    subject: str = "",
    state: str = "",
    failing: str = "",
    reference: str = "",
    cursor: str = "",
) -> Response:
    """A page of the connections that the visitor's permits cover, those that need somebody first."""
    kept = _kept(integration=integration, search=search or subject, state=state, reference=reference)
    is_failing = failing == "yes" and "reference" not in kept
    wanted: dict[str, Any] = dict(kept)
    if "state" in kept:
        wanted["state"] = chosen(LifecycleState, kept["state"], "state")
    is_listed = "reference" not in kept
    if is_listed:
        wanted |= {"failing": is_failing, "order": ListOrder.URGENCY}
    page = await list_connections(visit.call, **wanted, limit=ROWS, cursor=cursor or None)
    narrowing = {name: kept[name] for name in ("integration", "search") if name in kept}
    totals = await get_connection_totals(visit.call, **narrowing) if is_listed else None
    kept |= {"failing": "yes"} if is_failing else {}
    return visit.show(
        "connections.html",
        "Connections",
        page=page,
        filters={name: kept.get(name, "") for name in _FILTERS},
        filtered=bool(kept),
        states=list(LifecycleState),
        totals=totals,
        shares=_shares(totals, narrowing) if totals is not None else [],
        **pages_of("/console/connections", cursor, page.next_cursor, **kept),
        orders=is_listed and visit.call.may_audit(Target()),
        narrowing={name: kept[name] for name in (*narrowing, "state", "failing") if name in kept},
        share_of_list=_number_of(totals, kept.get("state"), is_failing),
        connects=visit.call.allows(Action.CONNECT, Target()),
    )


def _number_of(totals: ConnectionTotals | None, state: str | None, is_failing: bool) -> int:
    """How many connections the list has."""
    if totals is None:
        return 0
    if is_failing:
        return totals.failing
    return totals.total if state is None else totals.states.get(LifecycleState(state), 0)


class StateShare(NamedTuple):
    """How many connections of the filter are in a state, and their list."""

    words: str
    state: str
    failing: str
    number: int
    link: str


def _shares(totals: ConnectionTotals, narrowing: dict[str, str]) -> list[StateShare]:
    """All of them, then by state, the failing among the active ones before these."""
    shares = [("all", "", "", totals.total)]
    for state in LifecycleState:
        if state is LifecycleState.ACTIVE and totals.failing:
            shares.append(("failing", state.value, "yes", totals.failing))
        if totals.states.get(state):
            shares.append((state_words(state), state.value, "", totals.states[state]))
    return [
        StateShare(words, state, failing, number, f"/console/connections?{_query(narrowing, state, failing)}")
        for words, state, failing, number in shares
    ]


def _query(narrowing: dict[str, str], state: str, failing: str) -> str:
    fields = {**narrowing, "state": state, "failing": failing}
    return urlencode({name: value for name, value in fields.items() if value})


def _kept(**fields: str) -> dict[str, str]:
    """The fields of a filter that are filled in."""
    texts = {name: value[:_LONGEST].strip() for name, value in fields.items()}
    return {name: text for name, text in texts.items() if text}


@router.get("/console/connections/{connection_id}")
@console_page
async def show_connection(
    visit: VisitDep, connection_id: str, done: str = "", cursor: str = "", before: str = ""
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
        acts=_possible_acts(visit, view),
        connects=call.allows(Action.CONNECT, target),
        said=DONE.get(done),
        story=story,
        people=await visit.names_of(record.by for record in records.items),
        live=live,
        older=older,
        first_page=bool(cursor),
        ui=_workflow_page(visit, view) if call.may_audit(target) else None,
        codec=f"{visit.api.settings.public_url}/temporal",
    )


def _possible_acts(visit: ConsoleVisit, view: ConnectionView) -> tuple[str, ...]:
    """What the visitor may do with the connection in its state."""
    call, target = visit.call, Target(view.integration, view.provider, view.subject, view.id)
    actions = (Action.TOKEN, Action.CONNECT, Action.ADMIN)
    may = {action for action in actions if call.allows(action, target)}
    erase = ("erase",) if call.allows(Action.ADMIN, Target()) else ()
    if view.state.is_final or view.state is LifecycleState.REVOKING:
        return erase
    held = view.reason is ErrorCode.CONNECTION_HELD  # no consent begins for who leaves
    acts = ("reconnect",) if Action.CONNECT in may and not held else ()
    if acts and view.choices and view.state is LifecycleState.ACTIVE:
        acts = ("choose", *acts)
    if may and view.state is LifecycleState.ACTIVE:
        acts += ("refresh",)
    return (*acts, *(("revoke",) if may - {Action.TOKEN} else ()), *erase)


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


# --- what a visitor does: a GET shows what would happen, the POST calls the function of the API -


class Act(NamedTuple):
    """The words of an act's form."""

    title: str
    text: str
    button: str
    is_final: bool = False


ACTS = {
    "reconnect": Act(
        "Make a new connect link?",
        "The subject consents again. The current grant is used until then.",
        "Make the link",
    ),
    "choose": Act(
        "Which account?",
        "The grant reaches several accounts. No app gets a token before one is chosen; a later choice takes "
        "the place of an earlier one.",
        "Use this account",
    ),
    "refresh": Act(
        "Refresh now?",
        "The workflow asks the provider for a new access token, once, whatever the old one's time.",
        "Refresh",
    ),
    "erase": Act(
        "Erase for good?",
        "The grant is ended at the provider, the keys are destroyed, and every row is deleted, "
        "with what audit records say. Nobody can bring it back.",
        "Erase",
        is_final=True,
    ),
    "revoke": Act(
        "Revoke for good?",
        "From now on no app gets a token. A worker ends the grant at the provider. This can't be undone: a "
        "new connection needs a new consent.",
        "Revoke",
        is_final=True,
    ),
}


@router.get("/console/connect")
@console_page
async def show_connect(
    visit: VisitDep, integration: str = "", subject: str = "", label: str = "", scopes: str = ""
) -> Response:
    """The form of a new connection; with its fields filled in, what would happen."""
    fields = {"integration": integration, "subject": subject, "label": label, "scopes": scopes}
    wanted = _wanted(fields) if integration and subject else None
    return visit.show("connect.html", "Connect an account", fields=fields, wanted=wanted)


@router.post("/console/connect")
@console_page
async def connect(visit: VisitDep) -> Response:
    """Create the connection, or find the live one, and show its connect link once."""
    answer = await create_connection(_wanted(await visit.read_form()), visit.call)
    return _show_link(visit, ConnectionView.model_validate_json(bytes(answer.body)))


@router.get("/console/connections/{connection_id}/reconnect")
@router.get("/console/connections/{connection_id}/choose")
@router.get("/console/connections/{connection_id}/refresh")
@router.get("/console/connections/{connection_id}/revoke")
@router.get("/console/connections/{connection_id}/erase")
@console_page
async def show_act(visit: VisitDep, connection_id: str) -> Response:
    """What the act would do, and its form. Raises Failure NOT_PERMITTED for one that isn't possible."""
    name = visit.request.url.path.rpartition("/")[2]
    view = await get_connection(connection_id, visit.call)
    if name not in _possible_acts(visit, view):
        raise Failure(ErrorCode.NOT_PERMITTED, "This can't be done with the connection as it is, or by you.")
    return visit.show("act.html", ACTS[name].title, it=view, name=name, act=ACTS[name])


@router.post("/console/connections/{connection_id}/reconnect")
@console_page
async def reconnect(visit: VisitDep, connection_id: str) -> Response:
    """Make a new connect link, and show it once."""
    await visit.read_form()
    answer = await reauthorize_connection(connection_id, visit.call, ReauthorizeBody())
    return _show_link(visit, ConnectionView.model_validate_json(bytes(answer.body)))


@router.post("/console/connections/{connection_id}/choose")
@console_page
async def choose(visit: VisitDep, connection_id: str) -> Response:
    """Choose one of the accounts that the grant reaches."""
    body = ChooseBody(choice=(await visit.read_form()).get("choice", ""))
    answer = await choose_account(connection_id, body, visit.call)
    return _back_to(ConnectionView.model_validate_json(bytes(answer.body)).id, "chosen")


@router.post("/console/connections/{connection_id}/refresh")
@console_page
async def refresh(visit: VisitDep, connection_id: str) -> Response:
    """Refresh, unless the grant is newer than the one that the form was made for."""
    fields = await visit.read_form()
    seen = RefreshBody(generation=_number(fields.get("generation", "")))
    answer = await refresh_connection(connection_id, visit.request.app.state.refresher, visit.call, seen)
    after = ConnectionView.model_validate_json(bytes(answer.body))
    is_newer = seen.generation is None or after.generation > seen.generation
    return _back_to(after.id, "refreshed" if is_newer else "unchanged")


@router.post("/console/connections/{connection_id}/revoke")
@console_page
async def revoke(visit: VisitDep, connection_id: str) -> Response:
    """Revoke for good."""
    reason = (await visit.read_form()).get("reason", "")
    answer = await revoke_connection(connection_id, visit.call, RevokeBody(reason=reason or "requested"))
    return _back_to(ConnectionView.model_validate_json(bytes(answer.body)).id, "revoked")


@router.post("/console/connections/{connection_id}/erase")
@console_page
async def erase(visit: VisitDep, connection_id: str) -> Response:
    """Erase it, if the form names its subject once more."""
    fields = await visit.read_form()
    view = await get_connection(connection_id, visit.call)
    if fields.get("confirm") != view.subject:
        raise invalid_request("confirm", f"Type the subject, {view.subject}, to erase the connection.")
    visit.call.require_permit(Action.ADMIN, of=Target())
    body = ErasureBody(connection_id=view.id, reason=fields.get("reason") or "requested")
    erasure = await create_erasure(body, visit.call)
    return redirect_response(f"/console/erasures/{erasure.id}")


@router.get("/console/erasures/{erasure_id}")
@console_page
async def show_erasure(visit: VisitDep, erasure_id: str) -> Response:
    """How far an erasure has come."""
    erasure = await get_erasure(erasure_id, await require_auditor(visit.call))
    names = await visit.names_of([erasure.by])
    return visit.show("erasure.html", "Erasure", erasure=erasure, names=names)


@router.post("/console/connections/{connection_id}/confirm")
@console_page
async def confirm(visit: VisitDep, connection_id: str) -> Response:
    """Confirm the consent with the code that the subject's page shows."""
    code = Secret((await visit.read_form()).get("code", ""))
    view = await get_connection(connection_id, visit.call)
    await confirm_consent(view.id, ConfirmBody(code=code, subject=view.subject), visit.call)
    return _back_to(view.id, "confirmed")


def _wanted(fields: dict[str, str]) -> ConnectionBody:
    texts = {name: fields.get(name, "") for name in ("integration", "subject", "label")}
    scopes = fields.get("scopes", "").split()
    return ConnectionBody.model_validate(
        {name: text for name, text in texts.items() if text} | ({"scopes": scopes} if scopes else {})
    )


def _show_link(visit: ConsoleVisit, view: ConnectionView) -> Response:
    return visit.show("link.html", "Connect link", it=view)


def _back_to(connection_id: str, done: str) -> Response:
    return redirect_response(f"/console/connections/{connection_id}?done={done}")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None
