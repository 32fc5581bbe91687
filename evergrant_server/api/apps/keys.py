"""API keys of apps, and the first admin's: `/v1/apps/{a}/keys`. Shown once; the store keeps a MAC."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.credentials import LONGEST_LIFETIME, new_key
from evergrant_server.access.transactions import record
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.http.call import AdminCall, AdminCommand, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Body, Page, Slug, View
from evergrant_server.core.access import MOST_LIVE_KEYS, Action, App, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, KeyId, PermitId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.policy import PermitQuestion, Target, explain
from evergrant_server.store import Store, Transaction

router = APIRouter(tags=["apps"])

ADMIN = "admin"


class KeyBody(Body):
    """`lifetime` is in seconds; by default EVERGRANT_API_KEY_LIFETIME."""

    lifetime: Annotated[float, Field(ge=60, le=LONGEST_LIFETIME.total_seconds())] | None = None


class KeyView(View):
    """`live`: the key is accepted. One without `expires_at` is of an earlier version, and isn't.

    `last_used_at` is exact to the minute.
    """

    id: str
    live: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyView(KeyView):
    """The only response that contains an API key."""

    key: str


@router.post("/v1/apps/{name}/keys", status_code=201, response_model=NewKeyView)
@dangerous("always: who has the key is the app")
async def create_key(name: Slug, call: AdminCommand, body: KeyBody | None = None) -> Response:
    """Create a key. Only this response contains it.

    An app has two live keys at most: to replace one without a gap, create the second, give it to the app,
    and revoke the first.
    """
    seconds = None if body is None else body.lifetime
    lifetime = call.api.settings.api_key_lifetime if seconds is None else timedelta(seconds=seconds)

    async def add(tx: Transaction) -> CommandResponse:
        app = await require_app(tx, call, name)
        approved = await use_approval(tx, call, body, await app_facts(tx, app))
        key, shown = new_key(call.api.ring, app, call.now, lifetime)
        await tx.access.add_key(key)
        expires_at = (call.now + lifetime).isoformat()
        detail = {"app": app.name, "expires_at": expires_at, **approved}
        await call.record(tx, AuditAction.KEY_CREATED, key.id, **detail)
        return CommandResponse.of(NewKeyView.of(key, live=True, last_used_at=None, key=shown), 201)

    return await call.run(body, add)


@router.get("/v1/apps/{name}/keys")
async def list_keys(name: Slug, call: AuditorCall) -> Page[KeyView]:
    """The app's keys, with revoked ones, without secrets."""
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        keys, uses = await tx.access.keys(call.tenant, app.id), await tx.access.last_uses(call.tenant, app.id)
    shown = [KeyView.of(key, live=key.is_live(call.now), last_used_at=uses.get(key.id)) for key in keys]
    return Page(items=shown)


@router.delete("/v1/apps/{name}/keys/{key_id}", status_code=204)
async def revoke_key(name: Slug, key_id: str, call: AdminCall) -> Response:
    """Revoke a key. Requests with it are refused at once. Idempotent."""

    async def revoke(tx: Transaction) -> None:
        app = await require_app(tx, call, name)
        if key_id not in {key.id for key in await tx.access.keys(call.tenant, app.id)}:
            raise Failure(ErrorCode.NOT_FOUND)
        await tx.access.revoke_key(call.tenant, KeyId(key_id), call.now)
        await call.record(tx, AuditAction.KEY_REVOKED, key_id, app=app.name)

    await call.write(revoke)
    return Response(status_code=204)


async def bootstrap_admin(
    store: Store, clock: Clock, tenant: Tenant, lifetime: timedelta, *, force: bool = False
) -> str:
    """Create the app `admin` with an admin permit and return a new key. Needs the store and its keys.

    Raises Failure ALREADY_EXISTS if the app exists; `force` adds another key instead, and revokes the
    older of two live ones.
    """
    now = clock.now()
    async with store.write() as tx:
        app = await tx.access.app_by_name(tenant, ADMIN)
        if app is None:
            await tx.tenants.begin(tenant)
            app = App(tenant=tenant, id=AppId(new_id("app")), name=ADMIN, created_at=now)
            await tx.access.put_app(app, expected=None)
            await _record(tx, app, now, AuditAction.APP_PUT, app.id)
        elif not force:
            raise Failure(
                ErrorCode.ALREADY_EXISTS,
                "The first admin key was already created. "
                "For another one, run: python -m evergrant_server keys bootstrap --again",
                app=ADMIN,
            )
        await _permit_admin(tx, app, now)
        live = await tx.access.live_keys(tenant, app.id, now)
        if len(live) >= MOST_LIVE_KEYS:
            await tx.access.revoke_key(tenant, live[0].id, now)
            await _record(tx, app, now, AuditAction.KEY_REVOKED, live[0].id)
        key, shown = new_key(store.ring, app, now, lifetime)
        await tx.access.add_key(key)
        await _record(tx, app, now, AuditAction.KEY_CREATED, key.id)
    return shown


async def _permit_admin(tx: Transaction, app: App, now: datetime) -> None:
    """Make it an admin of the whole tenant, if it isn't: other admins may have denied or limited it."""
    decision = explain(
        await tx.access.permits(app.tenant, app.id), PermitQuestion(Target(), Action.ADMIN, now)
    )
    if decision.decision.allowed:
        return
    denying = (decision.decided_by, *decision.denied_by) if decision.decision.decided_by else ()
    for name in {ADMIN, *denying}:
        before = await tx.access.permit(app.tenant, app.id, name or "")
        if before is not None:
            await tx.access.delete_permit(before)
            await audit.record_denies(tx, app.tenant, app.id, RequestContext(by="operator"), now)
            await _record(tx, app, now, AuditAction.PERMIT_DELETED, before.id, name=before.name)
    permit = Permit(
        tenant=app.tenant,
        id=PermitId(new_id("per")),
        app_id=app.id,
        name=ADMIN,
        integration="*",
        actions=(Action.ADMIN,),
        created_at=now,
    )
    await tx.access.put_permit(permit, expected=None)
    await _record(tx, app, now, AuditAction.PERMIT_PUT, permit.id, actions=["admin"])


async def _record(
    tx: Transaction, app: App, now: datetime, action: AuditAction, object_id: str, **detail: object
) -> None:
    await record(
        tx, app.tenant, action, object_id, RequestContext(by="operator"), now, app=app.name, **detail
    )
