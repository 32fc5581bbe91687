"""API keys of apps, and the first admin's: `/v1/apps/{a}/keys`. Shown once; the store keeps a hash."""

from datetime import datetime

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.apps.routes import require_app
from evergrant_server.api.http.authentication import format_key, hash_secret, new_key_secret
from evergrant_server.api.http.call import AdminCall, AdminCommand, CommandResponse
from evergrant_server.api.http.models import Page, Slug, View
from evergrant_server.api.http.transactions import record
from evergrant_server.core.access import Action, App, AppKey, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, KeyId, PermitId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction

router = APIRouter(tags=["apps"])

ADMIN = "admin"


class KeyView(View):
    id: str
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """The only response that contains an API key."""

    key: str


@router.post("/v1/apps/{name}/keys", status_code=201, response_model=NewKeyView)
async def create_key(name: Slug, call: AdminCommand) -> Response:
    """Create a key. Only this response contains it."""

    async def add(tx: Transaction) -> CommandResponse:
        app = await require_app(tx, call, name)
        key, shown = await _add_key(tx, app, call.now)
        await call.record(tx, AuditAction.KEY_CREATED, key.id, app=app.name)
        return CommandResponse.of(NewKeyView.of(key, key=shown), 201)

    return await call.run(None, add)


@router.get("/v1/apps/{name}/keys")
async def list_keys(name: Slug, call: AdminCall) -> Page[KeyView]:
    """The app's keys, with revoked ones, without secrets."""
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        return Page(items=[KeyView.of(key) for key in await tx.access.keys(call.tenant, app.id)])


@router.delete("/v1/apps/{name}/keys/{key_id}", status_code=204)
async def revoke_key(name: Slug, key_id: str, call: AdminCall) -> Response:
    """Revoke a key. Requests with it are refused at once. Idempotent."""
    async with call.api.store.write() as tx:
        app = await require_app(tx, call, name)
        if key_id not in {key.id for key in await tx.access.keys(call.tenant, app.id)}:
            raise Failure(ErrorCode.NOT_FOUND)
        await tx.access.revoke_key(call.tenant, KeyId(key_id), call.now)
        await call.record(tx, AuditAction.KEY_REVOKED, key_id, app=app.name)
    return Response(status_code=204)


async def _add_key(tx: Transaction, app: App, now: datetime) -> tuple[AppKey, str]:
    """Add a key. Returns it and its text, which isn't stored."""
    secret = new_key_secret()
    key = AppKey(
        tenant=app.tenant,
        id=KeyId(new_id("key")),
        app_id=app.id,
        secret_hash=hash_secret(secret),
        created_at=now,
    )
    await tx.access.add_key(key)
    return key, format_key(key.id, secret)


async def bootstrap_admin(store: Store, clock: Clock, tenant: Tenant, *, force: bool = False) -> str:
    """Create the app `admin` with an admin permit and return a new key. Needs the store and its keys.

    Raises Failure ALREADY_EXISTS if the app exists; `force` adds another key instead.
    """
    now = clock.now()
    async with store.write() as tx:
        app = await tx.access.app_by_name(tenant, ADMIN)
        if app is None:
            app = App(tenant=tenant, id=AppId(new_id("app")), name=ADMIN, created_at=now)
            await tx.access.put_app(app, expected=None)
            await _record(tx, app, AuditAction.APP_PUT, app.id)
        elif not force:
            raise Failure(
                ErrorCode.ALREADY_EXISTS,
                "The first admin key was already created. "
                "For another one, run: python -m evergrant_server keys bootstrap --again",
                app=ADMIN,
            )
        if await tx.access.permit(tenant, app.id, ADMIN) is None:
            permit = Permit(
                tenant=tenant,
                id=PermitId(new_id("per")),
                app_id=app.id,
                name=ADMIN,
                integration="*",
                actions=(Action.ADMIN,),
                created_at=now,
            )
            await tx.access.put_permit(permit, expected=None)
            await _record(tx, app, AuditAction.PERMIT_PUT, permit.id, actions=["admin"])
        key, shown = await _add_key(tx, app, now)
        await _record(tx, app, AuditAction.KEY_CREATED, key.id, at=now.isoformat())
    return shown


async def _record(tx: Transaction, app: App, action: AuditAction, what: str, **detail: object) -> None:
    operator = RequestContext(by="operator")
    await record(tx, app.tenant, action, what, operator, app.created_at, app=app.name, **detail)
