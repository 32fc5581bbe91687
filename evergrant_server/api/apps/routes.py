"""`/v1/apps`: apps and their permits. A change makes the lease path read the app again."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field, StrictBool

from evergrant_server.api.connections.scopes import retry_waiting_connections
from evergrant_server.api.http.approvals import use_approval, with_approval
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    ReturnTo,
    Scopes,
    Slug,
    View,
    _printable,
    _slug,
)
from evergrant_server.api.http.problems import invalid_request, require_found
from evergrant_server.core.access import TOKEN_ACTIONS, Action, App, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, PermitId, new_id
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_WEIGHTY = TOKEN_ACTIONS | {Action.ADMIN}  # a second app must approve these, with EVERGRANT_FOUR_EYES


def _permitted_subject(value: str) -> str:
    if "*" in value and value != "*":
        raise ValueError("there are no patterns: name exact subjects, or * alone, for every subject")
    return _printable(value)


class AppBody(Body):
    disabled: StrictBool = False
    return_to: Annotated[tuple[ReturnTo, ...], Field(max_length=50)] = ()


class PermitBody(Body):
    """`integration` is a name or `*`; `subjects` are exact names, or `*` for all. There are no patterns."""

    integration: Annotated[str, AfterValidator(lambda it: it if it == "*" else _slug(it))]
    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_permitted_subject)], ...],
        Field(min_length=1, max_length=1000),
    ] = ("*",)
    scope_ceiling: Scopes | None = None
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]


class AppView(View):
    id: str
    name: str
    disabled: bool
    return_to: tuple[str, ...]
    created_at: datetime
    revision: int


class PermitView(View):
    id: str
    name: str
    integration: str
    subjects: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    actions: tuple[Action, ...]
    created_at: datetime
    revision: int


async def require_app(tx: Transaction, call: ApiCall, name: str) -> App:
    """The app of this name. Raises Failure NOT_FOUND."""
    return require_found(await tx.access.app_by_name(call.tenant, name))


@router.put("/v1/apps/{name}")
async def put_app(name: Slug, body: AppBody, response: Response, call: AdminCall) -> AppView:
    """Create or change an app. Requests of a disabled app are refused at once."""
    if body.disabled and name == call.caller.app.name:
        raise invalid_request("disabled", "An app can't disable itself.")
    async with call.api.store.write() as tx:
        before = await tx.access.app_to_replace(call.tenant, name)
        if before is None:
            id, now = AppId(new_id("app")), call.now
            new = App(tenant=call.tenant, id=id, name=name, created_at=now, **dict(body))
            after = await tx.access.put_app(new, expected=None)
        else:
            changed = before.model_copy(update=dict(body))
            after = await tx.access.put_app(changed, expected=before.revision)
        if before is not None and before.disabled and not after.disabled:
            await retry_waiting_connections(tx, call, after)
        detail = {"disabled": body.disabled, "return_to": list(body.return_to)}
        await call.record(tx, AuditAction.APP_PUT, after.id, app=name, **detail)
    call.api.relay.notify()
    response.status_code = 201 if before is None else 200
    return AppView.of(after)


@router.get("/v1/apps")
async def list_apps(call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None) -> Page[AppView]:
    """All apps of the tenant, sorted by name."""
    after = call.api.cursors.decode(cursor, call.tenant, list="apps")
    async with call.api.store.read() as tx:
        found = await tx.access.apps(call.tenant, after, limit + 1)
    next_cursor = call.api.cursors.next_cursor(found, limit, lambda it: it.name, call.tenant, list="apps")
    return Page(items=[AppView.of(app) for app in found[:limit]], next_cursor=next_cursor)


@router.get("/v1/apps/{name}")
async def get_app(name: Slug, call: AuditorCall) -> AppView:
    async with call.api.store.read() as tx:
        return AppView.of(await require_app(tx, call, name))


@router.delete("/v1/apps/{name}", status_code=204)
async def delete_app(name: Slug, call: AdminCall) -> Response:
    """Delete an app with its keys and permits. Connections stay: other apps may use them."""
    if name == call.caller.app.name:
        raise invalid_request("name", "An app can't delete itself.")
    async with call.api.store.write() as tx:
        app = require_found(await tx.access.app_to_replace(call.tenant, name))
        await tx.access.delete_app(call.tenant, app.id)
        await call.record(tx, AuditAction.APP_DELETED, app.id, app=name)
    return Response(status_code=204)


@router.put("/v1/apps/{name}/permits/{permit_name}")
async def put_permit(
    name: Slug, permit_name: Slug, body: PermitBody, response: Response, call: AdminCall
) -> PermitView:
    """Create or change a permit. An app can't give itself `token`, `proxy` or `export`."""
    own = name == call.caller.app.name and not call.api.settings.self_permits
    if own and not TOKEN_ACTIONS.isdisjoint(body.actions):
        why = "An app can't give itself token, proxy or export: another one must (EVERGRANT_SELF_PERMITS)."
        raise Failure(ErrorCode.NOT_PERMITTED, why)

    async def write(tx: Transaction) -> tuple[Permit | None, Permit]:
        app = await require_app(tx, call, name)
        approved = {} if _WEIGHTY.isdisjoint(body.actions) else await use_approval(tx, call, body)
        before = await tx.access.permit(call.tenant, app.id, permit_name)
        if before is None:
            new = Permit(
                tenant=call.tenant,
                id=PermitId(new_id("per")),
                app_id=app.id,
                name=permit_name,
                created_at=call.now,
                **dict(body),
            )
            after = await tx.access.put_permit(new, expected=None)
        else:
            changed = before.model_copy(update=dict(body))
            after = await tx.access.put_permit(changed, expected=before.revision)
        await retry_waiting_connections(tx, call, app)
        detail = {"app": name, "name": permit_name, **body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.PERMIT_PUT, after.id, **detail)
        return before, after

    before, after = await with_approval(call, body, lambda: call.write(write))
    response.status_code = 201 if before is None else 200
    return PermitView.of(after)


@router.get("/v1/apps/{name}/permits")
async def list_permits(name: Slug, call: AuditorCall) -> Page[PermitView]:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        return Page(items=[PermitView.of(it) for it in await tx.access.permits(call.tenant, app.id)])


@router.get("/v1/apps/{name}/permits/{permit_name}")
async def get_permit(name: Slug, permit_name: Slug, call: AuditorCall) -> PermitView:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        return PermitView.of(require_found(await tx.access.permit(call.tenant, app.id, permit_name)))


@router.delete("/v1/apps/{name}/permits/{permit_name}", status_code=204)
async def delete_permit(name: Slug, permit_name: Slug, call: AdminCall) -> Response:
    async with call.api.store.write() as tx:
        app = await require_app(tx, call, name)
        found = require_found(await tx.access.permit(call.tenant, app.id, permit_name))
        await tx.access.delete_permit(call.tenant, app.id, permit_name)
        await call.record(tx, AuditAction.PERMIT_DELETED, found.id, app=name, name=permit_name)
    return Response(status_code=204)
