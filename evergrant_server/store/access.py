"""Apps, their keys and permits. Any change of a key or permit moves the app's revision too."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint, update
from sqlmodel import ForeignKeyConstraint, col

from evergrant_server.core.access import App, AppKey, Permit
from evergrant_server.core.ids import AppId, KeyId, PermitId, Tenant
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import ModelRepository, columns_equal, not_found


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


class AppKeys(ModelRepository[AppKey, KeyId]):
    _table, _model = AppKeyRow, AppKey


class Permits(ModelRepository[Permit, PermitId]):
    _table, _model = PermitRow, Permit


class Access(ModelRepository[App, AppId]):
    _table, _model = AppRow, App

    def __init__(self, connection: DatabaseConnection) -> None:
        super().__init__(connection)
        self._keys, self._permits = AppKeys(connection), Permits(connection)

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
        await self._keys._add(key, f"Key {key.id}")

    async def key(self, key_id: KeyId) -> tuple[AppKey, App] | None:
        """The key with this id in whichever tenant, revoked or not, and its app."""
        key = await self._keys._one(id=key_id)
        app = None if key is None else await self.app(key.tenant, key.app_id)
        return None if key is None or app is None else (key, app)

    async def keys(self, tenant: Tenant, app_id: AppId) -> list[AppKey]:
        mine = self._keys._where(tenant=tenant, app_id=app_id)
        return await self._keys._all(mine.order_by(col(AppKeyRow.id)))

    async def revoke_key(self, tenant: Tenant, key_id: KeyId, at: datetime) -> AppKey:
        """Revoke a key; revoking it again changes nothing. Raises Failure NOT_FOUND."""
        key = await self._keys.get(tenant, key_id)
        if key is None:
            raise not_found(key_id)
        if key.revoked_at is not None:
            return key
        await self._bump(tenant, key.app_id)
        revoked = key.model_copy(update={"revoked_at": at})
        return await self._keys.replace(revoked, expected=key.revision)

    async def put_permit(self, p: Permit, *, expected: int | None) -> Permit:
        """Add (`expected` None) or change a permit.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        await self._bump(p.tenant, p.app_id)
        return await self._permits._put(p, f"Permit {p.name!r}", expected)

    async def permit(self, tenant: Tenant, app_id: AppId, name: str) -> Permit | None:
        return await self._permits._one(tenant=tenant, app_id=app_id, name=name)

    async def permits(self, tenant: Tenant, app_id: AppId) -> list[Permit]:
        """All permits of an app, sorted by name."""
        mine = self._permits._where(tenant=tenant, app_id=app_id)
        return await self._permits._all(mine.order_by(col(PermitRow.name)))

    async def delete_permit(self, tenant: Tenant, app_id: AppId, name: str) -> None:
        """Delete a permit. Raises Failure NOT_FOUND."""
        await self._permits._delete(f"Permit {name!r}", tenant=tenant, app_id=app_id, name=name)
        await self._bump(tenant, app_id)

    async def _bump(self, tenant: Tenant, app_id: AppId) -> None:
        """One revision tells a lease whether anything about the app changed."""
        next_one = {"revision": col(AppRow.revision) + 1}
        mine = columns_equal(AppRow, tenant=tenant, id=app_id)
        if await self._run(update(AppRow).where(mine).values(next_one)) != 1:
            raise not_found(app_id)
