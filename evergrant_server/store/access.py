"""Apps, their keys and permits. Any change of a key or permit moves the app's revision too."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint, delete, select, update
from sqlmodel import ForeignKeyConstraint, col

from evergrant_server.core.access import App, AppKey, Permit
from evergrant_server.core.ids import AppId, KeyId, Tenant
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import (
    ModelRepository,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_all,
    find_one,
    insert,
    not_found,
)


def app_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "app_id"], ["app.tenant", "app.id"], ondelete="CASCADE")


class AppRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    disabled: bool
    return_to: list[str] = columns.json()
    created_at: datetime = columns.timestamp()


class AppKeyRow(columns.IdTable, table=True):
    __table_args__ = (app_foreign_key(), Index(None, "id", unique=True), Index(None, "tenant", "app_id"))
    app_id: str
    secret_hash: str
    created_at: datetime = columns.timestamp()
    revoked_at: datetime | None = columns.timestamp()


class PermitRow(columns.IdTable, table=True):
    __table_args__ = (app_foreign_key(), UniqueConstraint("tenant", "app_id", "name"))
    app_id: str
    name: str
    integration: str
    subjects: list[str] = columns.json()
    scope_ceiling: list[str] | None = columns.json()
    actions: list[str] = columns.json()
    created_at: datetime = columns.timestamp()


class Access(ModelRepository[App, AppId]):
    _table, _model = AppRow, App

    async def put_app(self, app: App, *, expected: int | None) -> App:
        """Add (`expected` None) or change an app.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        return await self._put(app, f"App {app.name!r}", expected)

    async def app(self, tenant: Tenant, id: AppId) -> App | None:
        return await self.get(tenant, id)

    async def app_by_name(self, tenant: Tenant, name: str) -> App | None:
        return await self._one(tenant=tenant, name=name)

    async def apps(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[App]:
        """Apps sorted by name, after the name `after`."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def delete_app(self, tenant: Tenant, id: AppId) -> None:
        """Delete an app with its keys and permits. Raises Failure NOT_FOUND."""
        await self._delete(id, tenant=tenant, id=id)

    async def add_key(self, key: AppKey) -> None:
        """Add an API key. Raises Failure NOT_FOUND without its app, ALREADY_EXISTS."""
        await self._bump(key.tenant, key.app_id)
        if not await insert(self._connection, AppKeyRow, column_values(key)):
            raise already_exists(f"Key {key.id}")

    async def key(self, key_id: KeyId) -> tuple[AppKey, App] | None:
        """The key with this id in whichever tenant, revoked or not, and its app."""
        row = await find_one(self._connection, AppKeyRow, id=key_id)
        if row is None:
            return None
        key = AppKey.model_validate(row)
        app = await self.app(key.tenant, key.app_id)
        return None if app is None else (key, app)

    async def keys(self, tenant: Tenant, app_id: AppId) -> list[AppKey]:
        mine = select(AppKeyRow).where(columns_equal(AppKeyRow, tenant=tenant, app_id=app_id))
        rows = await fetch_all(self._connection, mine.order_by(col(AppKeyRow.id)))
        return [AppKey.model_validate(row) for row in rows]

    async def revoke_key(self, tenant: Tenant, key_id: KeyId, at: datetime) -> AppKey:
        """Revoke a key; revoking it again changes nothing. Raises Failure NOT_FOUND."""
        row = await find_one(self._connection, AppKeyRow, tenant=tenant, id=key_id)
        if row is None:
            raise not_found(key_id)
        key = AppKey.model_validate(row)
        if key.revoked_at is not None:
            return key
        revoked = key.model_copy(update={"revoked_at": at, "revision": key.revision + 1})
        await self._bump(tenant, key.app_id)
        same = {"tenant": tenant, "id": key_id}
        await compare_and_set(self._connection, AppKeyRow, same, column_values(revoked), key.revision)
        return revoked

    async def put_permit(self, p: Permit, *, expected: int | None) -> Permit:
        """Add (`expected` None) or change a permit.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        await self._bump(p.tenant, p.app_id)
        if expected is None:
            if not await insert(self._connection, PermitRow, column_values(p)):
                raise already_exists(f"Permit {p.name!r}")
            return p
        key = {"tenant": p.tenant, "id": p.id, "app_id": p.app_id}
        revision = await compare_and_set(self._connection, PermitRow, key, column_values(p), expected)
        return p.model_copy(update={"revision": revision})

    async def permit(self, tenant: Tenant, app_id: AppId, name: str) -> Permit | None:
        row = await find_one(self._connection, PermitRow, tenant=tenant, app_id=app_id, name=name)
        return None if row is None else Permit.model_validate(row)

    async def permits(self, tenant: Tenant, app_id: AppId) -> list[Permit]:
        """All permits of an app, sorted by name."""
        mine = select(PermitRow).where(columns_equal(PermitRow, tenant=tenant, app_id=app_id))
        rows = await fetch_all(self._connection, mine.order_by(col(PermitRow.name)))
        return [Permit.model_validate(row) for row in rows]

    async def delete_permit(self, tenant: Tenant, app_id: AppId, name: str) -> None:
        """Delete a permit. Raises Failure NOT_FOUND."""
        mine = columns_equal(PermitRow, tenant=tenant, app_id=app_id, name=name)
        if await self._run(delete(PermitRow).where(mine)) != 1:
            raise not_found(f"Permit {name!r}")
        await self._bump(tenant, app_id)

    async def _bump(self, tenant: Tenant, app_id: AppId) -> None:
        """One revision tells a lease whether anything about the app changed."""
        next_one = {"revision": col(AppRow.revision) + 1}
        mine = columns_equal(AppRow, tenant=tenant, id=app_id)
        if await self._run(update(AppRow).where(mine).values(next_one)) != 1:
            raise not_found(app_id)
