"""What a visitor does with connections: connect, reconnect, choose an account, refresh, revoke, confirm.

A GET shows what would happen and a form; the POST calls the function behind the route of the API, and has
nothing of its own but words.
"""

from typing import NamedTuple

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.connections.commands import (
    choose_account,
    confirm_consent,
    reauthorize_connection,
    revoke_connection,
)
from evergrant_server.api.connections.models import (
    ChooseBody,
    ConfirmBody,
    ConnectionBody,
    ConnectionView,
    ReauthorizeBody,
    RevokeBody,
)
from evergrant_server.api.connections.routes import create_connection, get_connection
from evergrant_server.api.console.connections import possible_acts
from evergrant_server.api.console.visit import ConsoleVisit, VisitDep, console_page
from evergrant_server.api.leases.models import RefreshBody
from evergrant_server.api.leases.refresh_command import refresh_connection
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret

router = APIRouter(include_in_schema=False)


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
@console_page
async def show_act(visit: VisitDep, connection_id: str) -> Response:
    """What the act would do, and its form. Raises Failure NOT_PERMITTED for one that isn't possible."""
    name = visit.request.url.path.rpartition("/")[2]
    view = await get_connection(connection_id, visit.call)
    if name not in possible_acts(visit, view):
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


@router.post("/console/connections/{connection_id}/confirm")
@console_page
async def confirm(visit: VisitDep, connection_id: str) -> Response:
    """Confirm the consent with the code that the subject's page shows."""
    code = Secret((await visit.read_form()).get("code", ""))
    view = await get_connection(connection_id, visit.call)
    await confirm_consent(view.id, ConfirmBody(code=code, subject=view.subject), visit.call)
    return _back_to(view.id, "confirmed")


def _wanted(fields: dict[str, str]) -> ConnectionBody:
    given = {name: fields.get(name, "") for name in ("integration", "subject", "label")}
    scopes = fields.get("scopes", "").split()
    return ConnectionBody.model_validate(
        {name: text for name, text in given.items() if text} | ({"scopes": scopes} if scopes else {})
    )


def _show_link(visit: ConsoleVisit, view: ConnectionView) -> Response:
    return visit.show("link.html", "Connect link", it=view)


def _back_to(connection_id: str, said: str) -> Response:
    return redirect_response(f"/console/connections/{connection_id}?said={said}")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None
