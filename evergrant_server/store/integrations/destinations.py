"""Where an integration's secrets are sent, as a worker has written it; and which place a grant is of.

The API lacks the key of these authenticators: neither it nor a writer of the database can have a refresh
token or a client secret sent elsewhere (ADR 0025). They are made with the first grant.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.crypto import KeyPurpose, KeyRing
from evergrant_server.store.authority import (
    authentic,
    grant_mac,
    has_same_destination,
    moved_destination_mac,
    new_destination_mac,
    require_destination,
    require_own_destination,
)
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Repository, columns_equal, find_one
from evergrant_server.store.integrations.tables import IntegrationRow

COLUMN = "destination_mac"
_MAX_TRIES = 3  # for an integration that changes meanwhile


class Destinations(Repository):
    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def require(self, connection: Connection, integration: Integration) -> None:
        """Raise Failure AUTHORITY_BROKEN unless the connection's secrets may be sent to the integration's
        endpoints: a worker wrote these, and that its grant is of them."""
        made = await self._mac(integration)
        if made is not None:
            require_destination(self._ring, integration, made)
        of_grant = {"tenant": connection.tenant, "connection_id": connection.id, "slot": MAIN_SLOT}
        grant = await find_one(self._connection, ConnectionGrantRow, **of_grant)
        if grant is not None:
            require_own_destination(self._ring, connection, grant[COLUMN], made or "")

    async def mac_of_new_grant(
        self, connection: Connection, old: Mapping[str, Any] | None = None
    ) -> str | None:
        """The authenticator for a grant of the connection; None when its integration is gone.

        It may replace `old`, whose tokens will be revoked, only at the same place. Raises Failure
        AUTHORITY_BROKEN, KEY_UNAVAILABLE without the refresh purpose.
        """
        for _ in range(_MAX_TRIES):
            id = {"tenant": connection.tenant, "id": connection.integration_id}
            row = await find_one(self._connection, IntegrationRow, **id)
            if row is None:
                return None
            integration = authentic(self._ring, Integration, IntegrationRow, row)
            if old is not None:
                require_own_destination(self._ring, connection, old[COLUMN], row[COLUMN] or "")
            if row[COLUMN] is not None:
                require_destination(self._ring, integration, row[COLUMN])
                return grant_mac(self._ring, connection, row[COLUMN])
            unwritten = columns_equal(
                IntegrationRow, **id, destination_mac=None, revision=integration.revision
            )
            made = {COLUMN: new_destination_mac(self._ring, integration)}
            await self._run(update(IntegrationRow).where(unwritten).values(made))
        raise Failure(ErrorCode.STORE_CONFLICT, f"{connection.integration_id} keeps changing.")

    async def after_change(self, before: Integration, after: Integration) -> dict[str, Any]:
        """The column for an integration that is changed, if it moves.

        A worker writes the new place; the API can't, and the first grant of the new place will.
        """
        if has_same_destination(before, after):
            return {}
        made = await self._mac(before)
        if made is None or not self._ring.holds(KeyPurpose.REFRESH):
            return {COLUMN: None}
        return {COLUMN: moved_destination_mac(self._ring, before, made, after)}

    async def _mac(self, integration: Integration) -> str | None:
        row = await find_one(self._connection, IntegrationRow, tenant=integration.tenant, id=integration.id)
        return None if row is None else row[COLUMN]
