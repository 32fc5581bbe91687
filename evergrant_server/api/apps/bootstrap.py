"""Creates the first admin: an app, a permit and an API key. Needs the store and its keys."""

from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import format_key, hash_secret, new_key_secret
from evergrant_server.core.access import Action, App, AppKey, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, KeyId, PermitId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction

ADMIN = "admin"


async def bootstrap_admin(store: Store, clock: Clock, tenant: Tenant, *, force: bool = False) -> str:
    """Create the app `admin` with an admin permit and return a new key.

    Raises Failure ALREADY_EXISTS if the app exists; `force` adds another key instead.
    """
    secret, now = new_key_secret(), clock.now()
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
        key = AppKey(
            tenant=tenant,
            id=KeyId(new_id("key")),
            app_id=app.id,
            secret_hash=hash_secret(secret),
            created_at=now,
        )
        await tx.access.add_key(key)
        await _record(tx, app, AuditAction.KEY_CREATED, key.id, at=now.isoformat())
    return format_key(key.id, secret)


async def _record(tx: Transaction, app: App, action: AuditAction, what: str, **detail: object) -> None:
    await record(
        tx, app.tenant, action, what, RequestContext(by="operator"), app.created_at, app=app.name, **detail
    )
