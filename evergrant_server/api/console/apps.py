"""`/console/apps`: apps with permits and API keys; `/console/access`: may this app use that connection."""

import secrets
from dataclasses import replace
from datetime import timedelta

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.apps.credentials import list_credentials
from evergrant_server.api.apps.explain import explain_access
from evergrant_server.api.apps.keys import KeyBody, NewKeyView, create_key, list_keys, revoke_key
from evergrant_server.api.apps.permits import list_permits
from evergrant_server.api.apps.reach import app_reach
from evergrant_server.api.apps.routes import get_app, list_apps
from evergrant_server.api.console.visit import ROWS, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import chain_problem
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_LONGEST = 2000
_ONCE_BYTES = 32
DONE = {"key-revoked": "The key is revoked. Requests with it are refused at once."}


@router.get("/console/apps")
@console_page
async def show_apps(visit: VisitDep, cursor: str = "") -> Response:
    """A page of the tenant's apps."""
    call = await require_auditor(visit.call)
    apps = await list_apps(call, limit=ROWS, cursor=cursor or None)
    return visit.show("apps.html", "Apps", found=apps, **pages_of("/console/apps", cursor, apps.next_cursor))


@router.get("/console/apps/{name}")
@console_page
async def show_app(visit: VisitDep, name: str, done: str = "") -> Response:
    """One app: what it may do, and how it proves who it is."""
    call = await require_auditor(visit.call)
    return visit.show(
        "app.html",
        name,
        it=await get_app(name, call),
        permits=(await list_permits(name, call)).items,
        keys=(await list_keys(name, call)).items,
        credentials=(await list_credentials(name, call)).items,
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
    )


@router.get("/console/apps/{name}/reach")
@console_page
async def show_reach(visit: VisitDep, name: str, cursor: str = "") -> Response:
    """What one app or agent can reach now, in plain words."""
    call = await require_auditor(visit.call)
    app = await get_app(name, call)
    reach = await app_reach(name, call, limit=ROWS, cursor=cursor or None)
    sponsor = app.sponsor or ""
    names = await visit.names_of([sponsor])
    async with call.api.store.read() as tx:
        delegations = await tx.delegations.live_of_app(call.tenant, AppId(app.id), call.now, ROWS)
        chains = [await tx.delegations.chain(delegation) for delegation in delegations]
    return visit.show(
        "reach.html",
        f"What {name} can reach",
        it=app,
        found=reach,
        sponsor=names.get(sponsor, sponsor),
        acting=[chain[-1] for chain in chains if chain_problem(chain, call.now) is None],
        manages=call.allows(Action.ADMIN, Target()),
        **pages_of(f"/console/apps/{name}/reach", cursor, reach.next_cursor),
    )


@router.get("/console/access")
@console_page
async def show_access(
    visit: VisitDep, app: str = "", connection: str = "", scopes: str = "", action: str = "token"
) -> Response:
    """May an app use a connection now, by which permit, and what else stops it."""
    call = await require_auditor(visit.call)
    asked = {"app": app, "connection": connection, "scopes": scopes}
    fields = {name: text[:_LONGEST].strip() for name, text in asked.items()}
    wanted = chosen(Action, action, "action")
    answer = None
    if fields["app"] and fields["connection"]:
        answer = await explain_access(call, **fields, action=wanted)
    return visit.show(
        "access.html",
        "Who may",
        fields=fields,
        wanted=wanted,
        actions=[each for each in Action if each is not Action.EXPORT],
        answer=answer,
    )


# --- API keys: made once by each form, shown in that answer alone -------------------------------


@router.get("/console/apps/{name}/keys")
@console_page
async def show_new_key(visit: VisitDep, name: str) -> Response:
    """The form of a new key."""
    call = await require_tenant_admin(visit.call)
    return visit.show(
        "key.html",
        "Make an API key",
        it=await get_app(name, call),
        once=secrets.token_urlsafe(_ONCE_BYTES),
        usual=visit.api.settings.api_key_lifetime.days,
    )


@router.post("/console/apps/{name}/keys")
@console_page
async def make_key(visit: VisitDep, name: str) -> Response:
    """Make a key, and show it. The same form makes no second one.

    Raises Failure ALREADY_EXISTS for a form that has made its key, and those of the API's route.
    """
    fields = await visit.read_form()
    once = fields.get("once", "")
    if not 20 <= len(once) <= 64:
        raise invalid_request("once", "The form isn't one of the console's: open it again.")
    call = replace(await require_tenant_admin(visit.call), key=f"console-{once}")
    async with visit.api.store.read() as tx:
        made = await tx.idempotency.find(call.tenant, call.caller.app.id, f"console-{once}")
    if made is not None:
        why = "This form has made its key, which was shown once. If it is lost, revoke it and make another."
        raise Failure(ErrorCode.ALREADY_EXISTS, why)
    answer = await create_key(name, call, _body(fields.get("days", "")))
    key = NewKeyView.model_validate_json(bytes(answer.body))
    return visit.show("key_made.html", "API key", name=name, key=key)


def _body(days: str) -> KeyBody | None:
    if not days:
        return None
    if not (days.isascii() and days.isdigit() and len(days) < 6):
        raise invalid_request("days", "Use a number of days, such as 30.")
    return KeyBody(lifetime=timedelta(days=int(days)).total_seconds())


@router.get("/console/apps/{name}/keys/{key_id}/revoke")
@console_page
async def show_revoke_key(visit: VisitDep, name: str, key_id: str) -> Response:
    """What would end with the key. Raises Failure NOT_FOUND."""
    call = await require_tenant_admin(visit.call)
    key = next((listed for listed in (await list_keys(name, call)).items if listed.id == key_id), None)
    if key is None or not key.live:
        raise Failure(ErrorCode.NOT_FOUND)
    is_own = visit.call.caller.credential.id == key_id
    return visit.show("key_revoke.html", "Revoke the key?", name=name, key=key, is_own=is_own)


@router.post("/console/apps/{name}/keys/{key_id}/revoke")
@console_page
async def end_key(visit: VisitDep, name: str, key_id: str) -> Response:
    """Revoke the key, at once and for good."""
    await visit.read_form()
    await revoke_key(name, key_id, await require_tenant_admin(visit.call))
    return redirect_response(f"/console/apps/{name}?done=key-revoked")
