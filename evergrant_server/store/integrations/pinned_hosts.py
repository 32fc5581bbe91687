"""Where an integration's secrets are sent, as a worker has written it; and which place a grant is of.

The API lacks the key of these authenticators: neither it nor a writer of the database can have a refresh
token or a client secret sent elsewhere (ADR 0025). They are made with the first grant.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import Integration, PinnedHosts, hosts_in, hosts_text
from evergrant_server.crypto import KeyPurpose, KeyRing
from evergrant_server.store.authority.authenticators import (
    authentic,
    grant_mac,
    has_same_destination,
    moved_destination_mac,
    new_destination_mac,
    require_destination,
    require_own_destination,
)
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Repository, columns_equal, find_one
from evergrant_server.store.integrations.tables import IntegrationRow

COLUMN, HOSTS = "destination_mac", "pinned_hosts"
_MAX_TRIES = 3  # for an integration that changes meanwhile


def require_pins(
    ring: KeyRing,
    connection: Connection,
    integration: Integration,
    integration_row: Mapping[str, Any],
    grant_row: Mapping[str, Any] | None,
) -> PinnedHosts:
    """The hosts to which the connection's secrets may be sent, by its integration's row and its grant's.

    Raises Failure AUTHORITY_BROKEN unless a worker wrote the integration's endpoints and hosts, and that
    the connection's grant is of them.
    """
    made, hosts = integration_row[COLUMN], integration_row[HOSTS]
    if made is not None:
        require_destination(ring, integration, made, hosts)
    if grant_row is not None:
        require_own_destination(ring, connection, grant_row[COLUMN], made or "", grant_row[HOSTS])
    return PinnedHosts(
        None if grant_row is None else hosts_in(grant_row[HOSTS]), None if made is None else hosts_in(hosts)
    )


class Destinations(Repository):
    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def pins(self, integration: Integration) -> PinnedHosts:
        """The hosts to which the integration's client credentials may be sent. Raises as `require_pins`."""
        made, hosts = await self._made(integration)
        if made is None:
            return PinnedHosts()
        require_destination(self._ring, integration, made, hosts)
        return PinnedHosts(integration=hosts_in(hosts))

    async def of_new_grant(
        self,
        connection: Connection,
        hosts: PinnedHosts,
        old: Mapping[str, Any] | None = None,
        older: IntegrationId | None = None,
    ) -> dict[str, str | None]:
        """The columns for a grant that was made at `hosts`; without values when its integration is gone.

        It may replace `old`, whose tokens will be revoked, only at the same place; one that the client of
        another integration, `older`, has got has to be of that one's. Raises Failure AUTHORITY_BROKEN,
        KEY_UNAVAILABLE without the refresh purpose.
        """
        if old is not None and older is not None:
            before = connection.__replace__(integration_id=older)
            row = await find_one(self._connection, IntegrationRow, tenant=connection.tenant, id=older)
            made = "" if row is None else row[COLUMN] or ""
            require_own_destination(self._ring, before, old[COLUMN], made, old[HOSTS])
            old = None
        for _ in range(_MAX_TRIES):
            id = {"tenant": connection.tenant, "id": connection.integration_id}
            row = await find_one(self._connection, IntegrationRow, **id)
            if row is None:
                return {HOSTS: None, COLUMN: None}
            integration = authentic(self._ring, Integration, IntegrationRow, row)
            if old is not None:
                made = row[COLUMN] or ""
                require_own_destination(self._ring, connection, old[COLUMN], made, old[HOSTS])
            if row[COLUMN] is not None:
                require_destination(self._ring, integration, row[COLUMN], row[HOSTS])
                text = hosts_text(hosts.grant)
                return {HOSTS: text, COLUMN: grant_mac(self._ring, connection, row[COLUMN], text)}
            unwritten = columns_equal(
                IntegrationRow, **id, destination_mac=None, revision=integration.revision
            )
            text = hosts_text(hosts.integration)
            first = {HOSTS: text, COLUMN: new_destination_mac(self._ring, integration, text)}
            await self._run(update(IntegrationRow).where(unwritten).values(first))
        raise Failure(ErrorCode.STORE_CONFLICT, f"{connection.integration_id} keeps changing.")

    async def after_change(self, before: Integration, after: Integration) -> dict[str, Any]:
        """The column for an integration that is changed, if it moves.

        A worker writes the new place; the API can't, and the first grant of the new place will.
        """
        if has_same_destination(before, after):
            return {}
        made, hosts = await self._made(before)
        if made is None or not self._ring.holds(KeyPurpose.REFRESH):
            return {HOSTS: None, COLUMN: None}
        return {COLUMN: moved_destination_mac(self._ring, before, made, after, hosts)}

    async def leave(self, integration: Integration) -> None:
        """Forget where the secrets of an integration went that has none any more, and no live connection.

        The worker calls this alone: the API, which lacks its key, can't write another place.
        """
        mine = columns_equal(IntegrationRow, tenant=integration.tenant, id=integration.id)
        await self._run(update(IntegrationRow).where(mine).values({HOSTS: None, COLUMN: None}))

    async def _made(self, integration: Integration) -> tuple[str | None, str | None]:
        """The authenticator of the integration's destination, and the hosts under it."""
        row = await find_one(self._connection, IntegrationRow, tenant=integration.tenant, id=integration.id)
        return (None, None) if row is None else (row[COLUMN], row[HOSTS])
