"""OAuth clients of the gateways, with authenticators."""

from datetime import datetime

from sqlalchemy import delete, func, or_, select, tuple_, update
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

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[GatewayClient]:
        """Clients sorted by id, after the id `after`. Not checked."""
        return await self._page(self._where(tenant=tenant), "id", after, limit)

    async def used(self, client: GatewayClient, at: datetime) -> None:
        """Raise the time of its last use, which no authenticator covers."""
        mine = columns_equal(OAuthClientRow, tenant=client.tenant, id=client.id)
        await self._run(update(OAuthClientRow).where(mine).values({"used_at": at}))

    async def delete(self, client: GatewayClient) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"Client {client.client_id}", tenant=client.tenant, id=client.id)

    async def prune_unused(self, before: datetime, limit: int = 1000) -> int:
        """Delete clients that no admin registered and that weren't used since then, at most `limit`; returns
        how many."""
        row = OAuthClientRow
        key = (col(row.tenant), col(row.id))
        last = func.coalesce(col(row.used_at), col(row.created_at))
        mine = or_(col(row.kind) == ClientKind.REGISTERED.value, col(row.kind) == ClientKind.DOCUMENT.value)
        unused = select(*key).where(mine, last < before).limit(limit)
        return await self._run(delete(row).where(tuple_(*key).in_(unused)))
