"""`/v1/apps`: apps and their permits. A change makes the lease path read the app again."""

from fastapi import APIRouter, Response

from evergrant_server.api.apps.models import AppBody, AppView, PermitBody, PermitView
from evergrant_server.api.connections.source_tokens import retry_waiting_connections
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.dependencies import ApiDep, ContextDep, TenantAdminDep
from evergrant_server.api.http.problems import require_found
from evergrant_server.api.http.requests import PageCursor, PageLimit, Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.core.access import App, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, PermitId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])


async def require_app(tx: Transaction, tenant: Tenant, name: str) -> App:
    """The app of this name. Raises Failure NOT_FOUND."""
    return require_found(await tx.access.app_by_name(tenant, name))


async def record_app_change(
    tx: Transaction,
    clock: Clock,
    action: AuditAction,
    what: str,
    app: App,
    context: RequestContext,
    **detail: object,
) -> None:
    await record(tx, app.tenant, action, what, context, clock.now(), app=app.name, **detail)


@router.put("/v1/apps/{name}")
async def put_app(
    name: Slug,
    body: AppBody,
    response: Response,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> AppView:
    """Create or change an app. Requests of a disabled app are refused at once."""
    if body.disabled and name == caller.app.name:
        raise Failure(ErrorCode.INVALID_REQUEST, "An app can't disable itself.", field="disabled")
    async with api.store.write() as tx:
        before = await tx.access.app_by_name(caller.tenant, name)
        changes = {"disabled": body.disabled, "return_to": body.return_to}
        if before is None:
            new = App(
                tenant=caller.tenant,
                id=AppId(new_id("app")),
                name=name,
                created_at=api.clock.now(),
                disabled=body.disabled,
                return_to=body.return_to,
            )
            after = await tx.access.put_app(new, expected=None)
        else:
            after = await tx.access.put_app(before.model_copy(update=changes), expected=before.revision)
        if before is not None and before.disabled and not after.disabled:
            await retry_waiting_connections(tx, after, context, api.clock.now())
        detail = {"disabled": body.disabled, "return_to": list(body.return_to)}
        await record_app_change(tx, api.clock, AuditAction.APP_PUT, after.id, after, context, **detail)
    api.relay.notify()
    response.status_code = 201 if before is None else 200
    return AppView.of(after)


@router.get("/v1/apps")
async def list_apps(
    api: ApiDep,
    caller: TenantAdminDep,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[AppView]:
    """All apps of the tenant, sorted by name."""
    after = api.cursors.decode(cursor, caller.tenant, list="apps")
    async with api.store.read() as tx:
        found = await tx.access.apps(caller.tenant, after, limit + 1)
    next_cursor = api.cursors.next_cursor(found, limit, lambda it: it.name, caller.tenant, list="apps")
    return Page(items=[AppView.of(app) for app in found[:limit]], next_cursor=next_cursor)


@router.get("/v1/apps/{name}")
async def get_app(name: Slug, api: ApiDep, caller: TenantAdminDep) -> AppView:
    async with api.store.read() as tx:
        return AppView.of(await require_app(tx, caller.tenant, name))


@router.delete("/v1/apps/{name}", status_code=204)
async def delete_app(name: Slug, api: ApiDep, caller: TenantAdminDep, context: ContextDep) -> Response:
    """Delete an app with its keys and permits. Connections stay: other apps may use them."""
    if name == caller.app.name:
        raise Failure(ErrorCode.INVALID_REQUEST, "An app can't delete itself.", field="name")
    async with api.store.write() as tx:
        app = await require_app(tx, caller.tenant, name)
        await tx.access.delete_app(caller.tenant, app.id)
        await record_app_change(tx, api.clock, AuditAction.APP_DELETED, app.id, app, context)
    return Response(status_code=204)


@router.put("/v1/apps/{name}/permits/{permit_name}")
async def put_permit(
    name: Slug,
    permit_name: Slug,
    body: PermitBody,
    response: Response,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> PermitView:
    """Create or change a permit."""
    async with api.store.write() as tx:
        app = await require_app(tx, caller.tenant, name)
        before = await tx.access.permit(caller.tenant, app.id, permit_name)
        if before is None:
            new = Permit(
                tenant=caller.tenant,
                id=PermitId(new_id("per")),
                app_id=app.id,
                name=permit_name,
                created_at=api.clock.now(),
                **dict(body),
            )
            after = await tx.access.put_permit(new, expected=None)
        else:
            changed = before.model_copy(update=dict(body))
            after = await tx.access.put_permit(changed, expected=before.revision)
        await retry_waiting_connections(tx, app, context, api.clock.now())
        sent = body.model_dump(mode="json")
        await record_app_change(
            tx,
            api.clock,
            AuditAction.PERMIT_PUT,
            after.id,
            app,
            context,
            name=permit_name,
            **sent,
        )
    api.relay.notify()
    response.status_code = 201 if before is None else 200
    return PermitView.of(after)


@router.get("/v1/apps/{name}/permits")
async def list_permits(name: Slug, api: ApiDep, caller: TenantAdminDep) -> Page[PermitView]:
    async with api.store.read() as tx:
        app = await require_app(tx, caller.tenant, name)
        return Page(items=[PermitView.of(it) for it in await tx.access.permits(caller.tenant, app.id)])


@router.get("/v1/apps/{name}/permits/{permit_name}")
async def get_permit(name: Slug, permit_name: Slug, api: ApiDep, caller: TenantAdminDep) -> PermitView:
    async with api.store.read() as tx:
        app = await require_app(tx, caller.tenant, name)
        found = await tx.access.permit(caller.tenant, app.id, permit_name)
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND)
    return PermitView.of(found)


@router.delete("/v1/apps/{name}/permits/{permit_name}", status_code=204)
async def delete_permit(
    name: Slug,
    permit_name: Slug,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> Response:
    async with api.store.write() as tx:
        app = await require_app(tx, caller.tenant, name)
        found = await tx.access.permit(caller.tenant, app.id, permit_name)
        if found is None:
            raise Failure(ErrorCode.NOT_FOUND)
        await tx.access.delete_permit(caller.tenant, app.id, permit_name)
        await record_app_change(
            tx, api.clock, AuditAction.PERMIT_DELETED, found.id, app, context, name=permit_name
        )
    return Response(status_code=204)
