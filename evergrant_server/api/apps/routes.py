"""`/v1/apps`. A change makes the lease path read the app again."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.connections.scopes import retry_waiting_connections
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, ReturnTo, Slug, View
from evergrant_server.core.access import App, Effect
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AppId, new_id
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])


class AppBody(Body):
    disabled: bool = False
    return_to: Annotated[tuple[ReturnTo, ...], Field(max_length=50)] = ()
    lease_limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None


class AppView(View):
    """An agent has a `sponsor` who answers for it, a `purpose`, and gets nothing from `ends_at` on."""

    id: str
    name: str
    disabled: bool
    return_to: tuple[str, ...]
    lease_limit: int | None
    sponsor: str | None
    purpose: str
    ends_at: datetime | None
    created_at: datetime
    revision: int


async def require_app(tx: Transaction, call: ApiCall, name: str) -> App:
    """The app of this name. Raises Failure NOT_FOUND."""
    return require_found(await tx.access.app_by_name(call.tenant, name))


async def app_facts(tx: Transaction, app: App) -> dict[str, Any]:
    """What the app's name stands for: its id, and the actions that its permits allow."""
    permits = await tx.access.permits(app.tenant, app.id)
    allowed = {action for permit in permits if permit.effect is Effect.ALLOW for action in permit.actions}
    return {"app": {"id": app.id, "name": app.name, "actions": sorted(allowed)}}


@router.put("/v1/apps/{name}")
@dangerous("to enable a disabled app")
async def put_app(name: Slug, body: AppBody, response: Response, call: AdminChange) -> AppView:
    """Create or change an app. Requests of a disabled app are refused at once."""
    if body.disabled and name == call.caller.app.name:
        raise invalid_request("disabled", "An app can't disable itself.")

    async def write(tx: Transaction) -> tuple[bool, App]:
        before = await tx.access.app_to_replace(call.tenant, name)
        approved: dict[str, str] = {}
        if before is not None and before.disabled and not body.disabled:
            approved = await use_approval(tx, call, body, await app_facts(tx, before))
        if before is None:
            id, now = AppId(new_id("app")), call.now
            new = App(tenant=call.tenant, id=id, name=name, created_at=now, **dict(body))
            after = await tx.access.put_app(new, expected=None)
        else:
            changed = before.__replace__(**dict(body))
            after = await tx.access.put_app(changed, expected=before.revision)
        if after.disabled:
            await tx.agents.end_leases_of_sponsored(call.tenant, after.id)
        if before is not None and before.disabled and not after.disabled:
            await retry_waiting_connections(tx, call, after)
        detail: dict[str, object] = {"disabled": body.disabled, "return_to": list(body.return_to)}
        if body.lease_limit is not None:
            detail["lease_limit"] = body.lease_limit
        await call.record(tx, AuditAction.APP_PUT, after.id, app=name, **detail, **approved)
        return before is None, after

    created, after = await call.write(write)
    response.status_code = 201 if created else 200
    return AppView.of(after)


@router.get("/v1/apps")
async def list_apps(call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None) -> Page[AppView]:
    """All apps of the tenant, sorted by name."""
    listing = call.listing("apps", limit, cursor)
    async with call.api.store.read() as tx:
        apps = await tx.access.apps(call.tenant, listing.after, listing.most)
    return listing.page([AppView.of(app) for app in apps], apps, lambda app: app.name)


@router.get("/v1/apps/{name}")
async def get_app(name: Slug, call: AuditorCall) -> AppView:
    async with call.api.store.read() as tx:
        return AppView.of(await require_app(tx, call, name))


@router.delete("/v1/apps/{name}", status_code=204)
async def delete_app(name: Slug, call: AdminCall) -> Response:
    """Delete an app with its keys and permits. Connections stay: other apps may use them."""
    if name == call.caller.app.name:
        raise invalid_request("name", "An app can't delete itself.")

    async def delete(tx: Transaction) -> None:
        app = require_found(await tx.access.app_to_replace(call.tenant, name))
        await tx.agents.end_leases_of_sponsored(call.tenant, app.id)
        await tx.access.delete_app(call.tenant, app.id)
        await call.record(tx, AuditAction.APP_DELETED, app.id, app=name)

    await call.write(delete)
    return Response(status_code=204)
