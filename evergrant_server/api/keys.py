"""`/v1/apps/{a}/keys`: API keys. A key is shown once; only a hash of its secret is kept."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.apps import named_app, record
from evergrant_server.api.authentication import format_key, hash_of, new_key_secret
from evergrant_server.api.guards import By, IdempotencyKey, TenantAdmin, With
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.shapes import Slug
from evergrant_server.api.views import KeyView, NewKeyView, Page
from evergrant_server.core.access import AppKey
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import KeyId, new_id
from evergrant_server.store import Tx

router = APIRouter(tags=["apps"])


@router.post("/v1/apps/{name}/keys", status_code=201, response_model=NewKeyView)
async def create(
    name: Slug,
    request: Request,
    parts: With,
    caller: TenantAdmin,
    asked: By,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new key for the app. The answer is the only place where it is shown."""
    once = Once(request, caller, idempotency_key, None)
    secret, now = new_key_secret(), parts.clock.now()

    async def add(tx: Tx) -> Answer:
        app = await named_app(tx, caller.tenant, name)
        key = AppKey(
            tenant=caller.tenant,
            id=KeyId(new_id("key")),
            app_id=app.id,
            secret_hash=hash_of(secret),
            created_at=now,
        )
        await tx.access.add_key(key)
        await record(tx, parts.clock, AuditAction.KEY_CREATED, key.id, app, asked)
        shown = NewKeyView(**KeyView.of(key).model_dump(), key=format_key(key.id, secret))
        return Answer.of(201, shown)

    return (await once.committed(parts, add)).response()


@router.get("/v1/apps/{name}/keys")
async def listed(name: Slug, parts: With, caller: TenantAdmin) -> Page[KeyView]:
    """The app's keys, revoked ones included. Never a secret."""
    async with parts.store.read() as tx:
        app = await named_app(tx, caller.tenant, name)
        return Page(items=[KeyView.of(key) for key in await tx.access.keys(caller.tenant, app.id)])


@router.delete("/v1/apps/{name}/keys/{key_id}", status_code=204)
async def revoke(name: Slug, key_id: str, parts: With, caller: TenantAdmin, asked: By) -> Response:
    """Revoke a key: refused from the next request on. Revoking it again changes nothing."""
    async with parts.store.write() as tx:
        app = await named_app(tx, caller.tenant, name)
        if key_id not in {key.id for key in await tx.access.keys(caller.tenant, app.id)}:
            raise Failure(Code.NOT_FOUND)
        await tx.access.revoke_key(caller.tenant, KeyId(key_id), parts.clock.now())
        await record(tx, parts.clock, AuditAction.KEY_REVOKED, key_id, app, asked)
    return Response(status_code=204)
