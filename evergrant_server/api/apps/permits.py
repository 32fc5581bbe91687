"""`/v1/apps/{name}/permits`: what an app may do. A change makes the lease path read the app again."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from evergrant_server import audit
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.permit_models import PermitBody, PermitView
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.connections.scopes import retry_waiting_connections
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, Slug
from evergrant_server.api.integrations.resolution import integration_by_name
from evergrant_server.core.access import TOKEN_ACTIONS, Action, App, Effect, EnforcementMode, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import PermitId, new_id
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_WEIGHTY = TOKEN_ACTIONS | {Action.ADMIN}
_OWN = "An app can't give itself token, proxy or export: another one must (EVERGRANT_SELF_PERMITS)."


@router.put("/v1/apps/{name}/permits/{permit_name}")
@dangerous("a permit with token, proxy, export or admin, a change of one, or of what denies these")
async def put_permit(
    name: Slug, permit_name: Slug, body: PermitBody, response: Response, call: AdminCall
) -> PermitView:
    """Create or change a permit. An app can't give itself `token`, `proxy` or `export`, nor change what
    denies it these."""
    is_own = name == call.caller.app.name
    if is_own and _denies(body, {Action.ADMIN}):
        raise invalid_request("actions", "An app can't deny itself admin: another one must.")
    if body.effect is Effect.ALLOW and not TOKEN_ACTIONS.isdisjoint(body.actions):
        _require_other(call, is_own)

    async def write(tx: Transaction) -> tuple[Permit | None, Permit]:
        app = await require_app(tx, call, name)
        before = await tx.access.permit(call.tenant, app.id, permit_name)
        if _denies(before, TOKEN_ACTIONS):
            _require_other(call, is_own)
        approved: dict[str, str] = {}
        changes = before is None or before.__replace__(**dict(body)) != before
        if changes and (gives_weighty(body) or _denies(before, _WEIGHTY)):
            facts = await permit_facts(tx, call, app, before, body.integration)
            approved = await use_approval(tx, call, body, facts)
        return before, await save_permit(tx, call, app, permit_name, body, before, approved)

    before, after = await call.write(write)
    response.status_code = 201 if before is None else 200
    return PermitView.of(after)


async def save_permit(
    tx: Transaction,
    call: ApiCall,
    app: App,
    name: str,
    body: PermitBody,
    before: Permit | None,
    recorded: Mapping[str, str],
) -> Permit:
    """Write a new permit, or the one `before` changed, with its audit record, which has `recorded` too."""
    if before is None:
        id = PermitId(new_id("per"))
        owned = {"tenant": call.tenant, "id": id, "app_id": app.id, "name": name, "created_at": call.now}
        after = await tx.access.put_permit(Permit(**owned, **dict(body)), expected=None)
    else:
        changed = before.__replace__(**dict(body))
        after = await tx.access.put_permit(changed, expected=before.revision)
    await retry_waiting_connections(tx, call, app)
    await audit.record_denies(tx, call.tenant, app.id, call.context, call.now)
    detail = {"app": app.name, "name": name, **body.model_dump(mode="json"), **recorded}
    await call.record(tx, AuditAction.PERMIT_PUT, after.id, **detail)
    return after


@router.get("/v1/apps/{name}/permits")
async def list_permits(
    name: Slug, call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[PermitView]:
    """The permits of an app, sorted by name."""
    bound = {"list": "permits", "app": name}
    after = call.cursors.decode(cursor, call.tenant, **bound)
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        found = await tx.access.permits(call.tenant, app.id, after, limit + 1)
    next_cursor = call.cursors.next_cursor(found, limit, lambda it: it.name, call.tenant, **bound)
    return Page(items=[PermitView.of(it) for it in found[:limit]], next_cursor=next_cursor)


@router.get("/v1/apps/{name}/permits/{permit_name}")
async def get_permit(name: Slug, permit_name: Slug, call: AuditorCall) -> PermitView:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        return PermitView.of(require_found(await tx.access.permit(call.tenant, app.id, permit_name)))


@router.delete("/v1/apps/{name}/permits/{permit_name}", status_code=204)
@dangerous("of a permit that denies token, proxy, export or admin")
async def delete_permit(name: Slug, permit_name: Slug, call: AdminCall) -> Response:
    """Delete a permit. An app can't delete what denies it `token`, `proxy` or `export`."""

    async def drop(tx: Transaction) -> None:
        app = await require_app(tx, call, name)
        found = require_found(await tx.access.permit(call.tenant, app.id, permit_name))
        if _denies(found, TOKEN_ACTIONS):
            _require_other(call, name == call.caller.app.name)
        approved: dict[str, str] = {}
        if _denies(found, _WEIGHTY):
            facts = await permit_facts(tx, call, app, found, found.integration)
            approved = await use_approval(tx, call, None, facts)
        await tx.access.delete_permit(call.tenant, app.id, permit_name)
        if found.effect is Effect.DENY:
            await retry_waiting_connections(tx, call, app)
        await audit.record_denies(tx, call.tenant, app.id, call.context, call.now)
        detail = {"app": name, "name": permit_name, **approved}
        await call.record(tx, AuditAction.PERMIT_DELETED, found.id, **detail)

    await call.write(drop)
    return Response(status_code=204)


async def permit_facts(
    tx: Transaction, call: ApiCall, app: App, before: Permit | None, integration: str
) -> dict[str, Any]:
    """What the names of a permit stand for; the integration where it names one."""
    known = before and {"id": before.id, "revision": before.revision}
    there = await integration_by_name(tx, call.api.registry, call.tenant, integration)
    return {**await app_facts(tx, app), "permit": known, "integration": there}


def gives_weighty(permit: PermitBody) -> bool:
    """True when it allows what reaches tokens or the configuration."""
    return permit.effect is Effect.ALLOW and not _WEIGHTY.isdisjoint(permit.actions)


def _denies(permit: Permit | PermitBody | None, actions: frozenset[Action] | set[Action]) -> bool:
    """True when it refuses some of these actions: the app gets more once it is gone."""
    return (
        permit is not None
        and permit.effect is Effect.DENY
        and permit.mode is EnforcementMode.ENFORCE
        and not actions.isdisjoint(permit.actions)
    )


def _require_other(call: ApiCall, is_own: bool) -> None:
    """Raise Failure NOT_PERMITTED for an app that gives itself an action that reaches tokens."""
    if is_own and not call.api.settings.self_permits:
        raise Failure(ErrorCode.NOT_PERMITTED, _OWN)
