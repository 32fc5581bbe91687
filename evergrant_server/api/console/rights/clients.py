"""`/console/clients`: OAuth clients of the gateway, and as which app they act; `/console/authorizations`:
what people authorized them for."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form, require_typed
from evergrant_server.api.console.typed import json_object, lines_of, without_private_keys, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.integrations.routes import list_integrations
from evergrant_server.api.oauth.clients import (
    OAuthClientBody,
    OAuthClientSwitchBody,
    OAuthClientView,
    create_oauth_client,
    delete_oauth_client,
    get_oauth_client,
    list_oauth_clients,
    switch_oauth_client,
)
from evergrant_server.api.oauth.family_routes import (
    TokenFamilyView,
    end_token_family,
    get_token_family,
    list_token_families,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.people.login_rules import (
    ClientLoginBody,
    ClientLoginView,
    delete_client_login,
    get_client_login,
    put_client_login,
)
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.oauth.clients import ClientKind
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_CLIENTS, _LOGIN, _AUTHORIZATIONS = "/console/clients", "/console/client-login", "/console/authorizations"
_LONGEST = 2000
_MOST_COUNTED = 200
_FIELDS = ("name", "redirect_uris", "jwks")
_LOGIN_CHECKS = ("registration", "documents", "device")
_LOGIN_FIELDS = ("app", "integration", "claim", "domains", *_LOGIN_CHECKS)
_FILTERS = ("app", "client_id", "subject")
DONE = {
    "made": "The client is registered. Give it its id.",
    "changed": "The client is changed. Its people are asked again.",
    "off": "The client is turned off. Its tokens count no more.",
    "on": "The client is turned on.",
    "deleted": "The client is deleted. Its tokens count no more.",
    "login-saved": "It is saved. What people authorized before has ended.",
    "login-deleted": "No client may act any more, and what people authorized has ended.",
    "ended": "The authorization has ended, with its access tokens.",
}


@router.get(_CLIENTS)
@console_page
async def show_clients(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """As which app clients act, and a page of them."""
    call = await require_auditor(visit.call)
    clients = await list_oauth_clients(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "clients.html",
        "Gateway clients",
        clients=clients.items,
        login=await _client_login(visit),
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(_CLIENTS, cursor, clients.next_cursor),
    )


async def _client_login(visit: ConsoleVisit) -> ClientLoginView | None:
    """None where clients may not act."""
    try:
        return await get_client_login(visit.call)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        return None


@router.get("/console/new/client")
@console_page
async def show_new_client(visit: VisitDep) -> Response:
    """The form of a client that an admin answers for."""
    await require_tenant_admin(visit.call)
    return _client_form(visit, Form(), None)


@router.post("/console/new/client")
@console_page
async def make_client(visit: VisitDep) -> Response:
    """Register a client, and lead to its id. It has no secret."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        client = await create_oauth_client(OAuthClientBody.model_validate(_members(fields)), call)
    except (Failure, ValidationError) as refusal:
        return _client_form(visit, Form.refused(without_private_keys(fields), refusal, _FIELDS), None)
    return redirect_response(f"{_CLIENTS}/{client.id}?done=made")


@router.get(f"{_CLIENTS}/{{oauth_client_id}}")
@console_page
async def show_client(visit: VisitDep, oauth_client_id: str, done: str = "") -> Response:
    """One client, and what people authorized it for."""
    call = await require_auditor(visit.call)
    client = await get_oauth_client(oauth_client_id, call)
    families = await list_token_families(call, client_id=client.client_id, limit=ROWS)
    return visit.show(
        "client.html",
        client.name or client.client_id,
        client=client,
        families=families.items,
        more_families=families.next_cursor is not None,
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
    )


@router.get(f"{_CLIENTS}/{{oauth_client_id}}/edit")
@console_page
async def show_edit_client(visit: VisitDep, oauth_client_id: str) -> Response:
    """The form that changes a client of an admin."""
    client = await get_oauth_client(oauth_client_id, await require_tenant_admin(visit.call))
    values = {"name": client.name, "redirect_uris": "\n".join(client.redirect_uris)}
    return _client_form(visit, Form(values), client)


@router.post(f"{_CLIENTS}/{{oauth_client_id}}/edit")
@console_page
async def edit_client(visit: VisitDep, oauth_client_id: str) -> Response:
    """Change its name and where its people are led back to."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    client = await get_oauth_client(oauth_client_id, call)
    try:
        body = OAuthClientSwitchBody.model_validate({"disabled": client.disabled, **_members(fields)})
        await switch_oauth_client(oauth_client_id, body, call)
    except (Failure, ValidationError) as refusal:
        return _client_form(visit, Form.refused(without_private_keys(fields), refusal, _FIELDS), client)
    return redirect_response(f"{_CLIENTS}/{oauth_client_id}?done=changed")


@router.post(f"{_CLIENTS}/{{oauth_client_id}}/switch")
@console_page
async def switch_client(visit: VisitDep, oauth_client_id: str) -> Response:
    """Turn a client off, or on again."""
    wanted = (await visit.read_form()).get("disabled", "")
    if wanted not in ("yes", "no"):
        raise invalid_request("disabled", "disabled: say yes or no.")
    body = OAuthClientSwitchBody(disabled=wanted == "yes")
    await switch_oauth_client(oauth_client_id, body, await require_tenant_admin(visit.call))
    return redirect_response(f"{_CLIENTS}/{oauth_client_id}?done={'off' if body.disabled else 'on'}")


@router.get(f"{_CLIENTS}/{{oauth_client_id}}/delete")
@console_page
async def show_delete_client(visit: VisitDep, oauth_client_id: str) -> Response:
    """What would end with a client."""
    return await _client_deletion(visit, oauth_client_id, Form())


@router.post(f"{_CLIENTS}/{{oauth_client_id}}/delete")
@console_page
async def end_client(visit: VisitDep, oauth_client_id: str) -> Response:
    """Delete the client whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    client = await get_oauth_client(oauth_client_id, call)
    try:
        require_typed(fields, client.name or client.client_id, "client")
        await delete_oauth_client(oauth_client_id, call)
    except Failure as refusal:
        return await _client_deletion(visit, oauth_client_id, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_CLIENTS}?done=deleted")


async def _client_deletion(visit: ConsoleVisit, oauth_client_id: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    client = await get_oauth_client(oauth_client_id, call)
    families = await list_token_families(call, client_id=client.client_id, limit=_MOST_COUNTED)
    live = sum(family.live for family in families.items)
    most = " at least" if families.next_cursor else ""
    counts = [(live, f"live authorization of people{most}", f"live authorizations of people{most}")]
    title = f"Delete {client.name or client.client_id}?"
    values = {"client": client, "counts": counts}
    return visit.show_form("client_delete.html", title, form, route=delete_oauth_client, **values)


def _client_form(visit: ConsoleVisit, form: Form, client: OAuthClientView | None) -> Response:
    if client is not None and client.kind is not ClientKind.ADMIN:
        why = "What this client says of itself is its own: turn it off, or delete it."
        raise Failure(ErrorCode.NOT_PERMITTED, why)
    title = "Register a client" if client is None else f"Change {client.name}"
    return visit.show_form("client_form.html", title, form, client=client)


def _members(fields: Mapping[str, str]) -> dict[str, Any]:
    """Raises Failure INVALID_REQUEST."""
    members: dict[str, Any] = {
        "name": fields.get("name", ""),
        "redirect_uris": lines_of(fields, "redirect_uris"),
    }
    if fields.get("jwks"):
        members["jwks"] = json_object(fields, "jwks")
    return members


# --- as which app clients act ---------------------------------------------------------------------


@router.get(_LOGIN)
@console_page
async def show_client_login(visit: VisitDep) -> Response:
    """The form of the app that clients act as, and of where the people behind them log in."""
    await require_tenant_admin(visit.call)
    login = await _client_login(visit)
    values = {"registration": "yes", "documents": "yes"} if login is None else _values_of(login)
    return await _login_form(visit, Form(values), login)


@router.post(_LOGIN)
@console_page
async def save_client_login(visit: VisitDep) -> Response:
    """Let clients act so, which ends what was authorized before."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        await put_client_login(_login_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        form = Form.refused(fields, refusal, _LOGIN_FIELDS)
        return await _login_form(visit, form, await _client_login(visit))
    return redirect_response(f"{_CLIENTS}?done=login-saved")


@router.get(f"{_LOGIN}/delete")
@console_page
async def show_delete_client_login(visit: VisitDep) -> Response:
    """What would end if no client could act."""
    return await _login_deletion(visit, Form())


@router.post(f"{_LOGIN}/delete")
@console_page
async def end_client_login(visit: VisitDep) -> Response:
    """Let no client act, where the app's name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, (await get_client_login(call)).app, "app")
        await delete_client_login(call)
    except Failure as refusal:
        return await _login_deletion(visit, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_CLIENTS}?done=login-deleted")


async def _login_form(visit: ConsoleVisit, form: Form, login: ClientLoginView | None) -> Response:
    call = await require_tenant_admin(visit.call)
    integrations = (await list_integrations(call, limit=_MOST_COUNTED)).items
    return visit.show_form(
        "client_login.html",
        "As which app clients act",
        form,
        login=login,
        integrations=[integration.name for integration in integrations if integration.issuer],
    )


async def _login_deletion(visit: ConsoleVisit, form: Form) -> Response:
    login = await get_client_login(await require_tenant_admin(visit.call))
    families = await list_token_families(visit.call, app=login.app, limit=_MOST_COUNTED)
    most = " at least" if families.next_cursor else ""
    live = sum(family.live for family in families.items)
    counts = [(live, f"live authorization of people{most}", f"live authorizations of people{most}")]
    return visit.show_form("client_login_delete.html", "Let no client act?", form, login=login, counts=counts)


def _login_body(fields: Mapping[str, str]) -> ClientLoginBody:
    """Raises ValidationError."""
    values: dict[str, Any] = {name: fields.get(name, "") for name in ("app", "integration")}
    values |= {"claim": fields["claim"]} if fields.get("claim") else {}
    values |= {name: name in fields for name in _LOGIN_CHECKS}
    return ClientLoginBody.model_validate({**values, "domains": words_in(fields, "domains")})


def _values_of(login: ClientLoginView) -> dict[str, str]:
    values = {"app": login.app, "integration": login.integration, "claim": login.claim.value}
    values["domains"] = " ".join(login.domains)
    return values | {name: "yes" for name in _LOGIN_CHECKS if getattr(login, name)}


# --- what people authorized -----------------------------------------------------------------------


@router.get(_AUTHORIZATIONS)
@console_page
async def show_authorizations(
    visit: VisitDep, app: str = "", client_id: str = "", subject: str = "", cursor: str = "", done: str = ""
) -> Response:
    """A page of what people authorized clients for, of one app, client or subject."""
    call = await require_auditor(visit.call)
    typed = zip(_FILTERS, (app, client_id, subject), strict=True)
    kept = {name: text[:_LONGEST].strip() for name, text in typed if text.strip()}
    families = await list_token_families(call, **kept, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "authorizations.html",
        "What people authorized",
        families=families.items,
        fields={name: kept.get(name, "") for name in _FILTERS},
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(_AUTHORIZATIONS, cursor, families.next_cursor, **kept),
    )


@router.get(f"{_AUTHORIZATIONS}/{{family_id}}/end")
@console_page
async def show_end_authorization(visit: VisitDep, family_id: str) -> Response:
    """What would end with an authorization."""
    return await _end_form(visit, family_id, Form())


@router.post(f"{_AUTHORIZATIONS}/{{family_id}}/end")
@console_page
async def end_authorization(visit: VisitDep, family_id: str) -> Response:
    """End it, with its access tokens."""
    await visit.read_form()
    await end_token_family(family_id, await require_tenant_admin(visit.call))
    return redirect_response(f"{_AUTHORIZATIONS}?done=ended")


async def _end_form(visit: ConsoleVisit, family_id: str, form: Form) -> Response:
    family: TokenFamilyView = await get_token_family(family_id, await require_tenant_admin(visit.call))
    return visit.show_form("authorization_end.html", "End this authorization?", form, family=family)
