"""Pinned hosts of every tenant: read page by page, accepted by an operator, and written where an accepted row
has none. A connection's own are in `pinned_hosts`."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from sqlalchemy import func, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Integration, hosts_in, hosts_text
from evergrant_server.crypto import KeyRing
from evergrant_server.store.authority.authenticators import (
    accepted_destination_mac,
    authentic,
    grant_mac,
    require_destination,
    require_own_destination,
)
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Repository, columns_equal, fetch_all, find_one, read_model
from evergrant_server.store.integrations.pinned_hosts import COLUMN, HOSTS
from evergrant_server.store.integrations.tables import IntegrationRow

_PAGE_ROWS = 500
_GRANTS, _CONNECTIONS, _INTEGRATIONS = (
    table_of(row) for row in (ConnectionGrantRow, ConnectionRow, IntegrationRow)
)

ResolveIntegration = Callable[[Integration], Awaitable[tuple[str, ...]]]
ResolveGrant = Callable[[Integration, str, dict[str, Any]], Awaitable[tuple[str, ...]]]


class PinnedHostsOfAll(Repository):
    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def page(self, after: str = "") -> list[tuple[Integration, tuple[str, ...]]]:
        """Integrations that have had a grant, sorted by id, with their hosts. Their rows aren't checked."""
        row = table_of(IntegrationRow).c
        query = select(table_of(IntegrationRow)).where(row.id > after, row[COLUMN].is_not(None))
        rows = await fetch_all(self._connection, query.order_by(row.id).limit(_PAGE_ROWS))
        return [
            (read_model(Integration, IntegrationRow, columns), hosts_in(columns[HOSTS])) for columns in rows
        ]

    async def granted(self, integration: Integration, after: str = "") -> list[ConnectionId]:
        """A page of the integration's connections that have a grant and haven't ended, sorted by id."""
        query = self._granted(integration).where(_CONNECTIONS.c.id > after)
        rows = await fetch_all(self._connection, query.order_by(_CONNECTIONS.c.id).limit(_PAGE_ROWS))
        return [ConnectionId(row["id"]) for row in rows]

    async def count_granted(self, integration: Integration) -> int:
        query = select(func.count()).select_from(self._granted(integration).subquery())
        return int((await self._connection.execute(query)).scalar_one())

    async def refused(
        self, after: tuple[str, str] = ("", ""), limit: int = _PAGE_ROWS
    ) -> list[tuple[Connection, tuple[str, ...], dict[str, Any]]]:
        """A page of active connections whose last refresh wasn't sent, since its host isn't pinned: with
        the hosts that are, and the facts that name the host."""
        key = (_CONNECTIONS.c.tenant, _CONNECTIONS.c.id)
        same = (_INTEGRATIONS.c.tenant == key[0]) & (_INTEGRATIONS.c.id == _CONNECTIONS.c.integration_id)
        query = (
            select(_CONNECTIONS, _GRANTS.c[HOSTS], _GRANTS.c.facts, _INTEGRATIONS.c[HOSTS].label("further"))
            .join_from(_CONNECTIONS, _GRANTS)
            .join(_INTEGRATIONS, same)
            .where(
                *(_CONNECTIONS.c.state == "active", _CONNECTIONS.c.failures > 0),
                *(_CONNECTIONS.c.last_failure == ErrorCode.HOST_NOT_ACCEPTED, _GRANTS.c.slot == MAIN_SLOT),
                tuple_(*key) > tuple_(*after),
            )
            .order_by(*key)
            .limit(limit)
        )
        rows = await fetch_all(self._connection, query)
        return [
            (
                read_model(Connection, ConnectionRow, row),
                (*hosts_in(row[HOSTS]), *hosts_in(row["further"])),
                row["facts"],
            )
            for row in rows
        ]

    async def accept(self, id: str, hosts: Collection[str]) -> Integration:
        """Pin more hosts to an integration, for all its grants. Needs the refresh purpose.

        Raises Failure NOT_FOUND, AUTHORITY_BROKEN, STORE_CONFLICT, and INVALID_REQUEST for one without a
        grant, which pins what it needs by itself.
        """
        row = await find_one(self._connection, IntegrationRow, id=id)
        if row is None:
            raise Failure(ErrorCode.NOT_FOUND, f"There is no integration {id}.")
        integration = authentic(self._ring, Integration, IntegrationRow, row)
        if row[COLUMN] is None:
            why = f"{id} has had no grant yet: its first one pins the hosts of its definition."
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="integration")
        require_destination(self._ring, integration, row[COLUMN], row[HOSTS])
        text = hosts_text((*hosts_in(row[HOSTS]), *hosts))
        await self._write_integration(integration, row[COLUMN], text)
        return integration

    async def pin_integrations(self, after: str, resolve: ResolveIntegration) -> str | None:
        """Write the hosts of a page of integrations that have none; the last id, or None at the end.

        One whose row is broken stays broken.
        """
        row = table_of(IntegrationRow).c
        query = select(table_of(IntegrationRow)).where(row.id > after).order_by(row.id).limit(_PAGE_ROWS)
        rows = await fetch_all(self._connection, query)
        for values in rows:
            if values[COLUMN] is None or values[HOSTS] is not None:
                continue
            try:
                integration = authentic(self._ring, Integration, IntegrationRow, values)
                require_destination(self._ring, integration, values[COLUMN], None)
            except Failure:
                continue
            await self._write_integration(integration, values[COLUMN], hosts_text(await resolve(integration)))
        return rows[-1]["id"] if rows else None

    async def pin_grants(self, integration: Integration, after: str, resolve: ResolveGrant) -> str | None:
        """As `pin_integrations`, for the grants of one integration, whose own row is written already."""
        row = await find_one(self._connection, IntegrationRow, tenant=integration.tenant, id=integration.id)
        made = row[COLUMN] if row is not None else None
        page = await self.granted(integration, after)
        mine = (_GRANTS.c.tenant == integration.tenant, _GRANTS.c.connection_id.in_(page))
        for grant in await fetch_all(
            self._connection, select(_GRANTS).where(*mine, _GRANTS.c[HOSTS].is_(None))
        ):
            names: dict[str, Any] = {"tenant": integration.tenant, "integration_id": integration.id}
            owner = Connection.model_construct(id=grant["connection_id"], **names)
            try:
                require_own_destination(self._ring, owner, grant[COLUMN], made or "", None)
            except Failure:
                continue
            text = hosts_text(await resolve(integration, owner.id, grant["facts"]))
            values = {HOSTS: text, COLUMN: grant_mac(self._ring, owner, made or "", text)}
            key = {name: grant[name] for name in ("tenant", "connection_id", "slot", HOSTS, COLUMN)}
            of_row = columns_equal(ConnectionGrantRow, **key)
            await self._run(update(ConnectionGrantRow).where(of_row).values(values))
        return page[-1] if page else None

    async def _write_integration(self, integration: Integration, made: str, text: str) -> None:
        values = {HOSTS: text, COLUMN: accepted_destination_mac(self._ring, integration, made, text)}
        key = {"tenant": integration.tenant, "id": integration.id, "revision": integration.revision}
        same = columns_equal(IntegrationRow, **key, destination_mac=made)
        if not await self._run(update(IntegrationRow).where(same).values(values)):
            raise Failure(ErrorCode.STORE_CONFLICT, f"{integration.id} was changed meanwhile.")

    def _granted(self, integration: Integration) -> Any:
        return (
            select(_CONNECTIONS.c.id)
            .join_from(_CONNECTIONS, _GRANTS)
            .where(
                *(_CONNECTIONS.c.tenant == integration.tenant, _GRANTS.c.slot == MAIN_SLOT),
                col(ConnectionRow.integration_id) == integration.id,
                _CONNECTIONS.c.state.not_in(FINAL_STATES),
            )
        )
