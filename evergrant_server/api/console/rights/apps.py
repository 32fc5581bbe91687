"""`/console/apps`: apps, and how one is made, changed, disabled and deleted."""

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.apps.credentials import list_credentials
from evergrant_server.api.apps.keys import list_keys
from evergrant_server.api.apps.permits import list_permits
from evergrant_server.api.apps.routes import AppBody, AppView, delete_app, get_app, list_apps, put_app
from evergrant_server.api.apps.simulation import Simulation, SimulationBody, simulate_change
from evergrant_server.api.console.forms import Form, require_typed, slug_of
from evergrant_server.api.console.typed import lines_of, whole_number
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.times import Counted
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_MOST_LISTED = 200
_APP_FIELDS = ("name", "return_to", "lease_limit")
DONE = {
    "made": "The app is made. It may do nothing before it has a permit.",
    "changed": "The app is changed.",
    "disabled": "The app is disabled. Its requests are refused at once.",
    "enabled": "The app is enabled.",
    "key-revoked": "The key is revoked. Requests with it are refused at once.",
    "agent-made": "It is an agent now. It reaches what its permits allow, and nothing without one.",
    "agent-changed": "The agent is changed.",
    "credential-made": "The credential is registered.",
    "credential-removed": "The credential is removed. Requests with its tokens are refused at once.",
    "permit-saved": "The permit is saved, and holds from now on.",
    "permit-removed": "The permit is removed.",
}


@router.get("/console/apps")
@console_page
async def show_apps(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """A page of the tenant's apps."""
    call = await require_auditor(visit.call)
    apps = await list_apps(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "apps.html",
        "Apps",
        found=apps,
        manages=call.allows(Action.ADMIN, Target()),
        said="The app is deleted." if done == "deleted" else None,
        **pages_of("/console/apps", cursor, apps.next_cursor),
    )


@router.get("/console/apps/{name}")
@console_page
async def show_app(visit: VisitDep, name: str, done: str = "", cursor: str = "") -> Response:
    """One app: what it may do, and how it proves who it is."""
    call = await require_auditor(visit.call)
    permits = await list_permits(name, call, limit=ROWS, cursor=cursor or None)
    app = await get_app(name, call)
    return visit.show(
        "app.html",
        name,
        it=app,
        names=await visit.names_of([app.sponsor or ""]),
        permits=permits.items,
        keys=(await list_keys(name, call)).items,
        credentials=(await list_credentials(name, call)).items,
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(f"/console/apps/{name}", cursor, permits.next_cursor),
    )


# --- an app's beginning, its changes, its end -----------------------------------------------------


@router.get("/console/new/app")
@console_page
async def show_new_app(visit: VisitDep) -> Response:
    """The form of a new app."""
    await require_tenant_admin(visit.call)
    return _app_form(visit, Form(), None)


@router.post("/console/new/app")
@console_page
async def make_app(visit: VisitDep) -> Response:
    """Make an app. A name that is taken is refused."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        await _require_unused(call, name)
        await put_app(name, _app_body(fields, disabled=False), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _app_form(visit, Form.refused(fields, refusal, _APP_FIELDS), None)
    return redirect_response(f"/console/apps/{name}?done=made")


@router.get("/console/apps/{name}/edit")
@console_page
async def show_edit_app(visit: VisitDep, name: str) -> Response:
    """The form that changes an app."""
    app = await get_app(name, await require_tenant_admin(visit.call))
    limit = "" if app.lease_limit is None else str(app.lease_limit)
    return _app_form(visit, Form({"return_to": "\n".join(app.return_to), "lease_limit": limit}), app)


@router.post("/console/apps/{name}/edit")
@console_page
async def edit_app(visit: VisitDep, name: str) -> Response:
    """Change where an app's subjects are led back to, and how much it may lease."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    app = await get_app(name, call)
    try:
        await put_app(name, _app_body(fields, disabled=app.disabled), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _app_form(visit, Form.refused(fields, refusal, _APP_FIELDS), app)
    return redirect_response(f"/console/apps/{name}?done=changed")


@router.get("/console/apps/{name}/disable")
@console_page
async def show_disable_app(visit: VisitDep, name: str) -> Response:
    """What an app would lose while it is disabled."""
    return await _switch_form(visit, name, Form(), disabled=True)


@router.post("/console/apps/{name}/disable")
@console_page
async def disable_app(visit: VisitDep, name: str) -> Response:
    return await _switch(visit, name, disabled=True)


@router.get("/console/apps/{name}/enable")
@console_page
async def show_enable_app(visit: VisitDep, name: str) -> Response:
    """What an app may do again once it is enabled."""
    return await _switch_form(visit, name, Form(), disabled=False)


@router.post("/console/apps/{name}/enable")
@console_page
async def enable_app(visit: VisitDep, name: str) -> Response:
    return await _switch(visit, name, disabled=False)


async def _switch(visit: ConsoleVisit, name: str, *, disabled: bool) -> Response:
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    app = await get_app(name, call)
    body = AppBody(disabled=disabled, return_to=app.return_to, lease_limit=app.lease_limit)
    try:
        await put_app(name, body, Response(), call)
    except Failure as refusal:
        return await _switch_form(visit, name, Form.refused(fields, refusal, ()), disabled=disabled)
    return redirect_response(f"/console/apps/{name}?done={'disabled' if disabled else 'enabled'}")


async def _switch_form(visit: ConsoleVisit, name: str, form: Form, *, disabled: bool) -> Response:
    call = await require_tenant_admin(visit.call)
    title = f"{'Disable' if disabled else 'Enable'} {name}?"
    app, loss = await get_app(name, call), await _loss(call, name)
    return visit.show_form("app_switch.html", title, form, app=app, disables=disabled, loss=loss)


@router.get("/console/apps/{name}/delete")
@console_page
async def show_delete_app(visit: VisitDep, name: str) -> Response:
    """What would end with an app."""
    return await _delete_form(visit, name, Form())


@router.post("/console/apps/{name}/delete")
@console_page
async def end_app(visit: VisitDep, name: str) -> Response:
    """Delete the app whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_app(name, call)
    try:
        require_typed(fields, name, "app")
        await delete_app(name, call)
    except Failure as refusal:
        return await _delete_form(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response("/console/apps?done=deleted")


async def _delete_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    keys = (await list_keys(name, call)).items
    credentials = (await list_credentials(name, call)).items
    counts = [
        (sum(key.live for key in keys), "live API key", "live API keys"),
        (len(credentials), "credential", "credentials"),
        (len(await _permit_names(call, name)), "permit", "permits"),
        *_lost_counts(await _loss(call, name)),
    ]
    title = f"Delete {name}?"
    return visit.show_form("app_delete.html", title, form, route=delete_app, name=name, counts=counts)


async def _loss(call: ApiCall, name: str) -> Simulation | None:
    """What the app would have lost of the last thirty days without any permit; None: it has none."""
    names = await _permit_names(call, name)
    return (
        await simulate_change(call, SimulationBody(app=name, permits=dict.fromkeys(names))) if names else None
    )


async def _permit_names(call: ApiCall, name: str) -> list[str]:
    names: list[str] = []
    cursor = None
    while True:
        page = await list_permits(name, call, limit=_MOST_LISTED, cursor=cursor)
        names += [permit.name for permit in page.items]
        if (cursor := page.next_cursor) is None:
            return names


def _lost_counts(loss: Simulation | None) -> list[Counted]:
    if loss is None:
        return []
    most = "" if loss.uses.complete else " at least"
    leased = "that it has leased in the last 30 days"
    return [
        (loss.lost, f"connection {leased}", f"connections {leased}"),
        (loss.uses.lost, f"lease or call of these days{most}", f"leases and calls of these days{most}"),
    ]


def _app_form(visit: ConsoleVisit, form: Form, app: AppView | None) -> Response:
    title = "Make an app" if app is None else f"Change {app.name}"
    return visit.show_form("app_form.html", title, form, app=app)


def _app_body(fields: dict[str, str], *, disabled: bool) -> AppBody:
    """Raises Failure INVALID_REQUEST, ValidationError."""
    limit = whole_number(fields, "lease_limit")
    return AppBody(disabled=disabled, return_to=tuple(lines_of(fields, "return_to")), lease_limit=limit)


async def _require_unused(call: ApiCall, name: str) -> None:
    """Raise Failure ALREADY_EXISTS for the name of an app: a put would change that app."""
    async with call.api.store.read() as tx:
        if await tx.access.app_to_replace(call.tenant, name) is not None:
            raise Failure(ErrorCode.ALREADY_EXISTS, "There is an app of this name.", field="name")
