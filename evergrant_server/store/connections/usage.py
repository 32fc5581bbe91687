"""The newest generation of a connection that was leased: the schedule refreshes ahead by it."""

from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store.connections.tables import UsageRow
from evergrant_server.store.database.rows import Repository, find_one


class Usage(Repository):
    """Usage rows of one transaction. They are raised by the lease ledger, without touching the
    connection's revision: a lease doesn't change a connection."""

    async def leased_generation(self, tenant: Tenant, connection_id: ConnectionId) -> int:
        """The newest generation that was leased; 0 when none was."""
        row = await find_one(self._connection, UsageRow, tenant=tenant, connection_id=connection_id)
        return 0 if row is None else int(row["leased_generation"])
