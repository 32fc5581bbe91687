"""API keys from the console: made once by each form, shown in that answer alone; and revoked."""

import secrets
from dataclasses import replace
from datetime import timedelta

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.apps.keys import KeyBody, NewKeyView, create_key, list_keys, revoke_key
from evergrant_server.api.apps.routes import get_app
from evergrant_server.api.console.visit import VisitDep, console_page
from evergrant_server.api.http.call import require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_ONCE_BYTES = 32


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
    key = next((it for it in (await list_keys(name, call)).items if it.id == key_id), None)
    if key is None or not key.live:
        raise Failure(ErrorCode.NOT_FOUND)
    is_own = visit.call.caller.credential.id == key_id
    return visit.show("key_revoke.html", "Revoke the key?", name=name, key=key, is_own=is_own)


@router.post("/console/apps/{name}/keys/{key_id}/revoke")
@console_page
async def end_key(visit: VisitDep, name: str, key_id: str) -> Response:
    """Revoke it: at once, and for good."""
    await visit.read_form()
    await revoke_key(name, key_id, await require_tenant_admin(visit.call))
    return redirect_response(f"/console/apps/{name}?said=key-revoked")
