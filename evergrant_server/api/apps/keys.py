"""`/v1/apps/{a}/keys`: API keys. A key is shown once; the store keeps a hash of its secret."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.apps.models import KeyView, NewKeyView
from evergrant_server.api.apps.routes import record_app_change, require_app
from evergrant_server.api.http.authentication import format_key, hash_secret, new_key_secret
from evergrant_server.api.http.dependencies import (
    ApiDep,
    ContextDep,
    IdempotencyKey,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.requests import Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.core.access import AppKey
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId, new_id
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])


@router.post("/v1/apps/{name}/keys", status_code=201, response_model=NewKeyView)
async def create_key(
    name: Slug,
    request: Request,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a key. Only this response contains it."""
    command = IdempotentCommand(request, caller, idempotency_key, None)
    secret, now = new_key_secret(), api.clock.now()

    async def add(tx: Transaction) -> CommandResponse:
        app = await require_app(tx, caller.tenant, name)
        key = AppKey(
            tenant=caller.tenant,
            id=KeyId(new_id("key")),
            app_id=app.id,
            secret_hash=hash_secret(secret),
            created_at=now,
        )
        await tx.access.add_key(key)
        await record_app_change(tx, api.clock, AuditAction.KEY_CREATED, key.id, app, context)
        shown = NewKeyView(**KeyView.of(key).model_dump(), key=format_key(key.id, secret))
        return CommandResponse.from_view(201, shown)

    return (await command.run(api, add)).response()


@router.get("/v1/apps/{name}/keys")
async def list_keys(name: Slug, api: ApiDep, caller: TenantAdminDep) -> Page[KeyView]:
    """The app's keys, with revoked ones, without secrets."""
    async with api.store.read() as tx:
        app = await require_app(tx, caller.tenant, name)
        return Page(items=[KeyView.of(key) for key in await tx.access.keys(caller.tenant, app.id)])


@router.delete("/v1/apps/{name}/keys/{key_id}", status_code=204)
async def revoke_key(
    name: Slug, key_id: str, api: ApiDep, caller: TenantAdminDep, context: ContextDep
) -> Response:
    """Revoke a key. Requests with it are refused at once. Idempotent."""
    async with api.store.write() as tx:
        app = await require_app(tx, caller.tenant, name)
        if key_id not in {key.id for key in await tx.access.keys(caller.tenant, app.id)}:
            raise Failure(ErrorCode.NOT_FOUND)
        await tx.access.revoke_key(caller.tenant, KeyId(key_id), api.clock.now())
        await record_app_change(tx, api.clock, AuditAction.KEY_REVOKED, key_id, app, context)
    return Response(status_code=204)
