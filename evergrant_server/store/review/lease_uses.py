"""Which connections each app has leased, and when last, to the hour. The lease ledger writes it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_all
from evergrant_server.store.store import Transaction


@dataclass(frozen=True)
class LeasedConnection:
    """A connection that an app has leased, with the scopes of its token now."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    scopes: tuple[str, ...]
    leased_at: datetime


async def leased_connections(
    tx: Transaction, tenant: Tenant, app_id: AppId, since: datetime, limit: int
) -> list[LeasedConnection]:
    """The connections that an app has leased since then and that hold a token, the newest lease first."""
    use, connection, grant = (table_of(it) for it in (LeaseUseRow, ConnectionRow, ConnectionGrantRow))
    same = (connection.c.tenant == use.c.tenant) & (connection.c.id == use.c.connection_id)
    main = (grant.c.tenant == use.c.tenant) & (grant.c.connection_id == use.c.connection_id)
    c = connection.c
    query = (
        select(c.id, c.integration, c.provider, c.subject, grant.c.scopes, use.c.used_at)
        .join_from(use, connection, same)
        .join(grant, main & (grant.c.slot == MAIN_SLOT))
        .where(use.c.tenant == tenant, use.c.app_id == app_id, use.c.used_at >= since)
        .order_by(use.c.used_at.desc(), c.id)
        .limit(limit)
    )
    return [
        LeasedConnection(
            row["id"],
            row["integration"],
            row["provider"],
            row["subject"],
            tuple(row["scopes"]),
            row["used_at"],
        )
        for row in await fetch_all(tx.connection, query)
    ]
