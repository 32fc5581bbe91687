"""Rows of connections. A change names the revision that was read."""

from datetime import datetime

from sqlalchemy import ColumnElement, Executable, and_, exists, or_, select
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, IntegrationId, Tenant
from evergrant_server.store.connections.tables import (
    FINAL_STATES,
    ConnectionGrantRow,
    ConnectionRow,
    LateTokensRow,
)
from evergrant_server.store.database.rows import (
    Repository,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_model,
    fetch_models,
    find_model,
    insert,
)

_WAITS = (LifecycleState.PENDING_CONSENT.value, LifecycleState.NEEDS_REAUTH.value)


class Connections(Repository):
    """Connections of one transaction."""

    async def add(self, c: Connection) -> None:
        """Add a connection. Raises Failure ALREADY_EXISTS when a live one has the same names."""
        if not await insert(self._connection, ConnectionRow, column_values(c)):
            raise already_exists(
                f"A live connection of this subject at {c.integration!r}, label {c.label!r},"
            )

    async def add_new(self, c: Connection) -> None:
        """Add a connection whose names were looked up and found free in this transaction.

        Raises Failure STORE_CONFLICT when they were taken meanwhile: look again.
        """
        try:
            await self.add(c)
        except Failure as failure:
            if failure.code is not ErrorCode.ALREADY_EXISTS:
                raise
            raise Failure(ErrorCode.STORE_CONFLICT, "It was started meanwhile.") from None

    async def get(self, tenant: Tenant, id: ConnectionId) -> Connection | None:
        return await find_model(self._connection, Connection, ConnectionRow, tenant=tenant, id=id)

    async def get_for_share(self, tenant: Tenant, id: ConnectionId) -> Connection | None:
        """The connection, locked against changes until this transaction ends."""
        return await self._locked(tenant, id, read=True)

    async def get_for_update(self, tenant: Tenant, id: ConnectionId) -> Connection | None:
        """The connection, locked against changes and shared locks until this transaction ends."""
        return await self._locked(tenant, id, read=False)

    async def by_names(
        self, tenant: Tenant, integration_name: str, subject: str, label: str = "default"
    ) -> Connection | None:
        """The live connection with these names, or else the newest of the ended ones."""
        names = columns_equal(
            ConnectionRow, tenant=tenant, integration=integration_name, subject=subject, label=label
        )
        ended = col(ConnectionRow.state).in_(FINAL_STATES)
        newest = col(ConnectionRow.created_at).desc()
        found = await self._list(
            select(ConnectionRow).where(names).order_by(ended, newest, col(ConnectionRow.id)).limit(1)
        )
        return found[0] if found else None

    async def page(
        self,
        tenant: Tenant,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
        state: LifecycleState | None = None,
        expiring_before: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[Connection]:
        """Connections sorted by id, after the id `after`; filters narrow, None doesn't."""
        equal = {"integration": integration, "provider": provider, "subject": subject, "state": state}
        given = {name: str(value) for name, value in equal.items() if value is not None}
        query = select(ConnectionRow).where(columns_equal(ConnectionRow, tenant=tenant, **given))
        if after is not None:
            query = query.where(col(ConnectionRow.id) > after)
        if expiring_before is not None:
            query = query.where(_expires_before(expiring_before))
        return await self._list(query.order_by(col(ConnectionRow.id)).limit(limit))

    async def failing(self, tenant: Tenant, integration_id: IntegrationId) -> list[Connection]:
        """Live connections of an integration whose last refresh failed, and those that may be trying
        something else that no row counts. Sorted by id."""
        query = select(ConnectionRow).where(
            columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id),
            col(ConnectionRow.state).not_in(FINAL_STATES),
            or_(col(ConnectionRow.failures) > 0, _tries_uncounted()),
        )
        return await self._list(query.order_by(col(ConnectionRow.id)))

    async def waiting_for_source_app(self, tenant: Tenant, app: AppId) -> list[Connection]:
        """Live connections for which tokens are exchanged in the name of `app`, and that have no
        first grant, or a last refresh that failed. Sorted by id."""
        query = select(ConnectionRow).where(
            columns_equal(ConnectionRow, tenant=tenant, source_app=app),
            col(ConnectionRow.state).not_in(FINAL_STATES),
            or_(col(ConnectionRow.failures) > 0, col(ConnectionRow.state).in_(_WAITS)),
        )
        return await self._list(query.order_by(col(ConnectionRow.id)))

    async def live_in_all_tenants(self, after: str | None = None, limit: int = 500) -> list[Connection]:
        """Connections of every tenant that haven't ended, sorted by id."""
        query = select(ConnectionRow).where(col(ConnectionRow.state).not_in(FINAL_STATES))
        if after is not None:
            query = query.where(col(ConnectionRow.id) > after)
        return await self._list(query.order_by(col(ConnectionRow.id)).limit(limit))

    async def replace(self, c: Connection, *, expected: int) -> Connection:
        """Write `c` if its row is still at revision `expected`; returns it with the next one.

        Raises Failure STORE_CONFLICT when the row changed meanwhile, NOT_FOUND when it is gone.
        """
        key = {"tenant": c.tenant, "id": c.id}
        revision = await compare_and_set(self._connection, ConnectionRow, key, column_values(c), expected)
        return c.model_copy(update={"revision": revision})

    async def _locked(self, tenant: Tenant, id: ConnectionId, *, read: bool) -> Connection | None:
        query = select(ConnectionRow).where(columns_equal(ConnectionRow, tenant=tenant, id=id))
        # SQLite has no such clause and needs none: it writes in one transaction at a time
        return await fetch_model(
            self._connection, Connection, query.with_for_update(read=read, key_share=not read)
        )

    async def _list(self, query: Executable) -> list[Connection]:
        return await fetch_models(self._connection, Connection, query)


def _tries_uncounted() -> ColumnElement[bool]:
    """A revocation, a first token of a flow without consent, or late tokens to be verified."""
    state = col(ConnectionRow.state)
    by_itself = col(ConnectionRow.flow).in_([it.value for it in Flow if not it.uses_browser])
    late = exists().where(
        col(LateTokensRow.tenant) == col(ConnectionRow.tenant),
        col(LateTokensRow.connection_id) == col(ConnectionRow.id),
    )
    return or_(state == LifecycleState.REVOKING.value, and_(state.in_(_WAITS), or_(by_itself, late)))


def _expires_before(moment: datetime) -> ColumnElement[bool]:
    same = and_(
        col(ConnectionGrantRow.tenant) == col(ConnectionRow.tenant),
        col(ConnectionGrantRow.connection_id) == col(ConnectionRow.id),
        col(ConnectionGrantRow.slot) == MAIN_SLOT,
    )
    return exists().where(same, col(ConnectionGrantRow.expires_at) < moment)
