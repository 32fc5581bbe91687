"""Apps, their keys and permits. Any change of a key or permit moves the app's revision too.

The last uses of keys and permits stand in tables of their own, which the lease ledger writes: they move
nothing. Apps and permits are read with their authenticators: see `authority`.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Index,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    select,
    union_all,
    update,
)
from sqlmodel import Field, col

from evergrant_server.core.access import MOST_LIVE_KEYS, App, AppKey, Effect, Permit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, KeyId, PermitId, Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, require_as_read
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import app_foreign_key, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import change, columns_equal, not_found
from evergrant_server.store.decisions import ApprovalRow
from evergrant_server.store.permits import Permits, require_denies


class AppRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    disabled: bool
    return_to: list[str] = columns.json()
    lease_limit: int | None = None
    created_at: datetime = columns.timestamp()
    mac: str | None = None
    sponsor: str | None = None
    sponsor_app: str | None = None
    purpose: str
    ends_at: datetime | None = columns.timestamp()
    denies: list[str] | None = columns.json()


class AppKeyRow(columns.IdTable, table=True):
    __table_args__ = (app_foreign_key(), Index(None, "id", unique=True), Index(None, "tenant", "app_id"))
    app_id: str
    secret_hash: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime | None = columns.timestamp()
    revoked_at: datetime | None = columns.timestamp()
    mac: str | None = None


class AppCredentialRow(columns.IdTable, table=True):
    __table_args__ = (app_foreign_key(), UniqueConstraint("tenant", "app_id", "name"))
    app_id: str
    name: str
    method: str
    parameters: dict[str, Any] = columns.json()
    created_at: datetime = columns.timestamp()
    mac: str | None = None


class AppKeyUseRow(columns.TenantTable, table=True):
    key_id: str = Field(primary_key=True)
    used_at: datetime = columns.timestamp()


class LeaseUseRow(columns.TenantTable, table=True):
    __table_args__ = (Index("ix_lease_use_connection", "tenant", "connection_id"),)
    app_id: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    used_at: datetime = columns.timestamp()


_REVISION = select(col(AppRow.revision)).where(
    columns_equal(AppRow, tenant=bindparam("tenant"), id=bindparam("id"))
)
_BUMP = (
    update(table_of(AppRow))
    .where(columns_equal(AppRow, tenant=bindparam("of_tenant"), id=bindparam("of_app")))
    .values({"revision": col(AppRow.revision) + 1})
)


class AppKeys(AuthenticatedRepository[AppKey, KeyId]):
    _table, _model = AppKeyRow, AppKey


class Access(AuthenticatedRepository[App, AppId]):
    _table, _model = AppRow, App

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection, ring)
        self._keys, self._permits = AppKeys(connection, ring), Permits(connection, ring)

    async def put_app(self, app: App, *, expected: int | None) -> App:
        """Add (`expected` None) or change an app.

        Its denies are those that it names and those that are there. Raises Failure ALREADY_EXISTS when
        adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        denies = {*(app.denies or ()), *await self._permits.denies(app.tenant, app.id)}
        app = app.__replace__(denies=tuple(sorted(denies)))
        return await self._put(app, f"App {app.name!r}", expected)

    async def app(self, tenant: Tenant, id: AppId) -> App | None:
        return await self.get(tenant, id)

    async def revision(self, tenant: Tenant, id: AppId) -> int | None:
        """The revision of the app as its row says; None: it is gone."""
        return (await self._connection.execute(_REVISION, {"tenant": tenant, "id": id})).scalar_one_or_none()

    async def locked(self, tenant: Tenant, id: AppId) -> App | None:
        """The app, which no other transaction changes or locks until this one ends. Its revision stays."""
        return await self._first(self._where(tenant=tenant, id=id).with_for_update(key_share=True))

    async def app_by_name(self, tenant: Tenant, name: str) -> App | None:
        return await self._one(tenant=tenant, name=name)

    async def app_to_replace(self, tenant: Tenant, name: str) -> App | None:
        """The app as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, name=name)

    async def apps(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[App]:
        """Apps sorted by name, after the name `after`."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def delete_app(self, tenant: Tenant, id: AppId) -> None:
        """Delete an app with its keys, credentials and permits. Raises Failure NOT_FOUND.

        Which connections it has leased stays: an incident may be of an app that is gone.
        """
        used = columns_equal(AppKeyUseRow, tenant=tenant) & col(AppKeyUseRow.key_id).in_(_keys_of(tenant, id))
        await self._run(delete(AppKeyUseRow).where(used))
        await self._permits.delete_uses(tenant=tenant, app_id=id)
        await self._run(delete(ApprovalRow).where(columns_equal(ApprovalRow, tenant=tenant, app_id=id)))
        await self._delete(id, tenant=tenant, id=id)

    async def add_key(self, key: AppKey) -> None:
        """Add an API key.

        Raises Failure NOT_FOUND without its app, ALREADY_EXISTS also when the app has two live keys.
        """
        await self.bump(key.tenant, key.app_id)
        live = await self.live_keys(key.tenant, key.app_id, key.created_at)
        if len(live) >= MOST_LIVE_KEYS:
            why = f"The app has {MOST_LIVE_KEYS} live keys already, which is the most."
            raise Failure(ErrorCode.ALREADY_EXISTS, why)
        await self._keys._add(key, f"Key {key.id}")

    async def key(self, key_id: KeyId) -> tuple[AppKey, App] | None:
        """The key with this id in whichever tenant, revoked or not, and its app."""
        key = await self._keys._one(id=key_id)
        app = None if key is None else await self.app(key.tenant, key.app_id)
        return None if key is None or app is None else (key, app)

    async def keys(self, tenant: Tenant, app_id: AppId) -> list[AppKey]:
        mine = self._keys._where(tenant=tenant, app_id=app_id)
        return await self._keys._all_unchecked(mine.order_by(col(AppKeyRow.id)))

    async def live_keys(self, tenant: Tenant, app_id: AppId, now: datetime) -> list[AppKey]:
        """The keys that are accepted now, the oldest first."""
        live = [key for key in await self.keys(tenant, app_id) if key.is_live(now)]
        return sorted(live, key=lambda key: key.created_at)

    async def apps_with_two_keys(self, tenant: Tenant, now: datetime) -> list[App]:
        """Apps of which a newer key is to replace the older one, by name."""
        live = columns_equal(AppKeyRow, tenant=tenant, revoked_at=None) & (col(AppKeyRow.expires_at) > now)
        two = select(col(AppKeyRow.app_id)).where(live).group_by(col(AppKeyRow.app_id))
        ids = two.having(func.count() > 1)
        mine = self._where(col(AppRow.id).in_(ids), tenant=tenant)
        return await self._all_unchecked(mine.order_by(col(AppRow.name)))

    async def last_uses(self, tenant: Tenant, app_id: AppId) -> dict[str, datetime]:
        """When each key and credential of an app last authenticated a request, by its id, to the minute."""
        query = select(col(AppKeyUseRow.key_id), col(AppKeyUseRow.used_at)).where(
            columns_equal(AppKeyUseRow, tenant=tenant), col(AppKeyUseRow.key_id).in_(_keys_of(tenant, app_id))
        )
        return {key_id: at for key_id, at in await self._connection.execute(query)}

    async def key_ends(self) -> list[tuple[Tenant, str, datetime | None]]:
        """Tenant, name and the end of the last unrevoked key of every app that has one, in all tenants.

        None: its keys are all of an earlier version.
        """
        query = (
            select(col(AppRow.tenant), col(AppRow.name), func.max(col(AppKeyRow.expires_at)))
            .join(
                AppKeyRow,
                (col(AppKeyRow.tenant) == col(AppRow.tenant)) & (col(AppKeyRow.app_id) == col(AppRow.id)),
            )
            .where(col(AppKeyRow.revoked_at).is_(None), col(AppRow.disabled).is_(False))
            .group_by(col(AppRow.tenant), col(AppRow.name))
            .order_by(col(AppRow.tenant), col(AppRow.name))
        )
        return [(Tenant(tenant), name, end) for tenant, name, end in await self._connection.execute(query)]

    async def revoke_key(self, tenant: Tenant, key_id: KeyId, at: datetime) -> AppKey:
        """Revoke a key; revoking it again changes nothing. Raises Failure NOT_FOUND."""
        key = await self._keys._one_unchecked(tenant=tenant, id=key_id)
        if key is None:
            raise not_found(key_id)
        if key.revoked_at is not None:
            return key
        await self.bump(tenant, key.app_id)
        revoked = key.__replace__(revoked_at=at)
        return await self._keys.replace(revoked, expected=key.revision)

    async def put_permit(self, p: Permit, *, expected: int | None) -> Permit:
        """Add (`expected` None) or change a permit; the app names it if it denies.

        Raises Failure ALREADY_EXISTS when adding, also to MOST_PERMITS, STORE_CONFLICT or NOT_FOUND when
        changing, AUTHORITY_BROKEN for an app that Evergrant didn't write so.
        """
        await self.bump(p.tenant, p.app_id)
        saved = await self._permits.put(p, expected=expected)
        await self._name_deny(p.tenant, p.app_id, p.id, denies=p.effect is Effect.DENY)
        return saved

    async def permit(self, tenant: Tenant, app_id: AppId, name: str) -> Permit | None:
        """The permit as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._permits._one_unchecked(tenant=tenant, app_id=app_id, name=name)

    async def permits(
        self, tenant: Tenant, app_id: AppId, after: str | None = None, limit: int | None = None
    ) -> list[Permit]:
        """The permits of an app sorted by name, after the name `after`; by default all."""
        return await self._permits.of_app(tenant, app_id, after, limit)

    async def permits_of(self, app: App) -> list[Permit]:
        """All permits by which an app's requests are judged, sorted by name. Raises as `require_denies`."""
        permits = await self.permits(app.tenant, app.id)
        await self._require_among(app, [permit.id for permit in permits if permit.effect is Effect.DENY])
        return permits

    async def named_denies(self, tenant: Tenant, app_id: AppId) -> tuple[PermitId, ...]:
        """The permits that the app's row names as those that deny, in this transaction."""
        app = await self._one_unchecked(tenant=tenant, id=app_id)
        return () if app is None else app.denies or ()

    async def require_denies(self, app: App) -> None:
        """Raise Failure AUTHORITY_BROKEN unless each permit of the app that denies is there, STORE_CONFLICT
        when the app has changed since it was read."""
        await self._require_among(app, await self._permits.denies(app.tenant, app.id))

    async def _require_among(self, app: App, denies: Collection[str]) -> None:
        try:
            require_denies(app, denies)
        except Failure:
            await require_as_read(self._connection, AppRow, app)
            raise

    async def permit_uses(self, tenant: Tenant, ids: Collection[str]) -> dict[str, datetime]:
        """When each of these permits last allowed something, by its id, to the minute."""
        return await self._permits.last_uses(tenant, ids)

    async def permits_with_sources(self) -> int:
        """How many permits in all tenants look at the caller's address."""
        return await self._permits.with_sources()

    async def delete_permit(self, p: Permit) -> None:
        """Delete a permit that `permit` gave.

        Raises Failure STORE_CONFLICT for one that changed since, NOT_FOUND without its app, AUTHORITY_BROKEN
        as `put_permit` does.
        """
        await self.bump(p.tenant, p.app_id)
        await self._permits.delete_uses(tenant=p.tenant, app_id=p.app_id, name=p.name)
        await self._permits._delete_read(p)
        await self._name_deny(p.tenant, p.app_id, p.id, denies=False)

    async def _name_deny(self, tenant: Tenant, app_id: AppId, id: PermitId, *, denies: bool) -> None:
        """Have the app name a permit, or not any more. Its row is locked by `bump` already."""
        app = await self.app(tenant, app_id)
        if app is None:
            raise not_found(app_id)
        named = set(await self._permits.denies(tenant, app_id) if app.denies is None else app.denies)
        wanted = named | {id} if denies else named - {id}
        if app.denies is None or wanted != named:
            renamed = app.__replace__(denies=tuple(sorted(wanted)))
            await self.replace(renamed, expected=app.revision)

    async def bump(self, tenant: Tenant, app_id: AppId) -> None:
        """One revision tells a lease whether anything about the app changed. Raises Failure NOT_FOUND."""
        if await change(self._connection, _BUMP, {"of_tenant": tenant, "of_app": app_id}) != 1:
            raise not_found(app_id)


def _keys_of(tenant: Tenant, app_id: AppId) -> CompoundSelect[str]:
    """The ids of its keys and credentials."""
    mine = {"tenant": tenant, "app_id": app_id}
    return union_all(
        *(
            select(col(table.id)).where(columns_equal(table, **mine))
            for table in (AppKeyRow, AppCredentialRow)
        )
    )
