"""OAuth clients of the gateways, with authenticators."""

from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.ids import OAuthClientId, Tenant
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.oauth.tables import OAuthClientRow


class OAuthClients(AuthenticatedRepository[GatewayClient, OAuthClientId]):
    _table, _model = OAuthClientRow, GatewayClient

    async def add(self, client: GatewayClient) -> GatewayClient:
        """Raises Failure ALREADY_EXISTS for a `client_id` that is there."""
        return await self._add(client, f"Client {client.client_id}")

    async def add_once(self, client: GatewayClient) -> bool:
        """Add a client unless it is there; whether it was added."""
        return await self._insert(client)

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

    async def evict_unused(self, most: int, limit: int = 1000) -> int:
        """Delete clients that no admin registered and that were never used, all but the newest `most`;
        `limit` at a time. Returns how many."""
        row = OAuthClientRow
        key = (col(row.tenant), col(row.id))
        unused = and_(self._made_by_itself(), col(row.used_at).is_(None))
        newest_first = (col(row.created_at).desc(), col(row.id))
        old = select(*key).where(unused).order_by(*newest_first).offset(most).limit(limit)
        return await self._run(delete(row).where(tuple_(*key).in_(old)))

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
        never = and_(col(row.used_at).is_(None), col(row.created_at) < never_used)
        old = select(*key).where(self._made_by_itself(), or_(never, col(row.used_at) < unused)).limit(limit)
        return await self._run(delete(row).where(tuple_(*key).in_(old)))

    @staticmethod
    def _made_by_itself() -> ColumnElement[bool]:
        row = OAuthClientRow
        kinds = ClientKind.REGISTERED.value, ClientKind.DOCUMENT.value
        return and_(col(row.kind).in_(kinds), col(row.disabled).is_(False))
