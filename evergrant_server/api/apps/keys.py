"""`/v1/apps/{a}/keys`: API keys. A key is shown once; only a hash of its secret is kept."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.apps.routes import record_app_change, require_app
from evergrant_server.api.http.authentication import format_key, hash_secret, new_key_secret
from evergrant_server.api.http.dependencies import (
    ContextDep,
    IdempotencyKey,
    RequestContextDep,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.requests import Slug
from evergrant_server.api.http.responses import KeyView, NewKeyView, Page
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
    parts: ContextDep,
    caller: TenantAdminDep,
    asked: RequestContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new key for the app. The answer is the only place where it is shown."""
    once = IdempotentCommand(request, caller, idempotency_key, None)
    secret, now = new_key_secret(), parts.clock.now()

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
        await record_app_change(tx, parts.clock, AuditAction.KEY_CREATED, key.id, app, asked)
        shown = NewKeyView(**KeyView.of(key).model_dump(), key=format_key(key.id, secret))
        return CommandResponse.from_view(201, shown)

    return (await once.run(parts, add)).response()


@router.get("/v1/apps/{name}/keys")
async def list_keys(name: Slug, parts: ContextDep, caller: TenantAdminDep) -> Page[KeyView]:
    """The app's keys, revoked ones included. Never a secret."""
    async with parts.store.read() as tx:
        app = await require_app(tx, caller.tenant, name)
        return Page(items=[KeyView.of(key) for key in await tx.access.keys(caller.tenant, app.id)])


@router.delete("/v1/apps/{name}/keys/{key_id}", status_code=204)
async def revoke_key(
    name: Slug, key_id: str, parts: ContextDep, caller: TenantAdminDep, asked: RequestContextDep
) -> Response:
    """Revoke a key: refused from the next request on. Revoking it again changes nothing."""
    async with parts.store.write() as tx:
        app = await require_app(tx, caller.tenant, name)
        if key_id not in {key.id for key in await tx.access.keys(caller.tenant, app.id)}:
            raise Failure(ErrorCode.NOT_FOUND)
        await tx.access.revoke_key(caller.tenant, KeyId(key_id), parts.clock.now())
        await record_app_change(tx, parts.clock, AuditAction.KEY_REVOKED, key_id, app, asked)
    return Response(status_code=204)
