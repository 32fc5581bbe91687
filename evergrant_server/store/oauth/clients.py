"""OAuth clients of the gateways, with authenticators."""

from datetime import datetime

from sqlalchemy import and_, delete, func, or_, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.ids import OAuthClientId, Tenant
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.oauth.tables import OAuthClientRow


class OAuthClients(AuthenticatedRepository[GatewayClient, OAuthClientId]):
    _table, _model = OAuthClientRow, GatewayClient

    async def add(self, client: GatewayClient) -> GatewayClient:
        """Raises Failure ALREADY_EXISTS for a `client_id` that is there."""
        return await self._add(client, f"Client {client.client_id}")

    async def by_client_id(self, client_id: str) -> GatewayClient | None:
        """The client that presents this, of whichever tenant. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(client_id=client_id)

    async def to_change(self, tenant: Tenant, id: OAuthClientId) -> GatewayClient | None:
        """The client as its row says, with a broken authenticator too: a change repairs that."""
        return await self._one_unchecked(tenant=tenant, id=id)

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[GatewayClient]:
        """Clients sorted by id, after the id `after`. Not checked."""
        return await self._page(self._where(tenant=tenant), "id", after, limit)

    async def used(self, client: GatewayClient, at: datetime) -> None:
        """Raise the time of its last use, which no authenticator covers."""
        mine = columns_equal(OAuthClientRow, tenant=client.tenant, id=client.id)
        await self._run(update(OAuthClientRow).where(mine).values({"used_at": at}))

    async def count_unused(self, most: int) -> int:
        """How many clients registered themselves, in all tenants, and were never used; `most` at the most."""
        row = OAuthClientRow
        unused = (
            col(row.kind) != ClientKind.ADMIN.value,
            col(row.used_at).is_(None),
            col(row.disabled).is_(False),
        )
        some = select(col(row.id)).where(*unused).limit(most).subquery()
        return int((await self._connection.execute(select(func.count()).select_from(some))).scalar_one())

    async def delete(self, client: GatewayClient) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"Client {client.client_id}", tenant=client.tenant, id=client.id)

    async def prune_unused(self, never_used: datetime, unused: datetime, limit: int = 1000) -> int:
        """Delete clients that no admin registered: those from before `never_used` that were never used, and
        those that weren't since `unused`. At most `limit`; returns how many.

        One that an admin turned off stays: the id of a document is public, and its next request would have it
        read anew, turned on.
        """
        row = OAuthClientRow
        key = (col(row.tenant), col(row.id))
        kinds = ClientKind.REGISTERED.value, ClientKind.DOCUMENT.value
        mine = and_(col(row.kind).in_(kinds), col(row.disabled).is_(False))
        never = and_(col(row.used_at).is_(None), col(row.created_at) < never_used)
        old = select(*key).where(mine, or_(never, col(row.used_at) < unused)).limit(limit)
        return await self._run(delete(row).where(tuple_(*key).in_(old)))
