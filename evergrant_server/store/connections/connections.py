"""Rows of connections. A change names the revision that was read; `database.rows` compares it.

The authenticator of the names is written when a row is added, and no later change makes a new one, but the
worker's with the first grant of a connection that a gateway added.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, false, func, or_, select, text
from sqlmodel import col

from evergrant_server.core.access import MovePhase
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, IntegrationId, Tenant
from evergrant_server.crypto import KeyRing, Signer
from evergrant_server.store.authority.authenticators import (
    authentic,
    require_none_put_back,
    require_signature,
    row_mac,
)
from evergrant_server.store.connections.tables import (
    BY_NAMES,
    FAILING_CONDITION,
    FINAL_STATES,
    LIVE_CONDITION,
    REFUSED_CONDITION,
    REVOKING_CONDITION,
    ConnectionGrantRow,
    ConnectionRow,
    LateTokensRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    ModelRepository,
    Values,
    column_values,
    columns_equal,
    fetch_all,
    fetch_first,
    find_one,
    insert_all,
    read_model,
)
from evergrant_server.store.tenants import TenantStandingRow

_COUNT = select(func.count()).select_from(table_of(ConnectionRow))
OFFERED = ("consent_deadline", "requested_scopes", "default_scopes", "slot_scopes")  # with a new link
_WAITS = (LifecycleState.PENDING_CONSENT.value, LifecycleState.NEEDS_REAUTH.value)


_ROW = table_of(ConnectionRow).c
_STANDING = table_of(TenantStandingRow).c
# the tenant's phase is read in the same statement: a move that pauses the tenant waits for this transaction
_PHASE = select(_STANDING.phase).where(_STANDING.tenant == _ROW.tenant, _STANDING.id == _ROW.tenant)
_POSITION = select(_ROW.state, _ROW.generation, _PHASE.scalar_subquery().label("phase")).where(
    _ROW.tenant == bindparam("tenant"), _ROW.id == bindparam("id")
)
_POSITION_FOR_SHARE = _POSITION.with_for_update(read=True)


# a tenant of another cell has no workflow here
_ELSEWHERE = select(_STANDING.tenant).where(_STANDING.phase.in_([MovePhase.ARRIVING, MovePhase.MOVED]))
_IS_HERE = _ROW.tenant.not_in(_ELSEWHERE)


class Position(NamedTuple):
    """What an attempt begins from."""

    state: LifecycleState
    generation: int
    phase: MovePhase = MovePhase.HERE  # of its tenant


class PendingRevocation(NamedTuple):
    """A connection that is revoking since then."""

    tenant: Tenant
    id: ConnectionId
    integration: str
    since: datetime


class UnreadableRow(NamedTuple):
    """A row that this version can't read as a connection; `why` names its fields, none of their values."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    why: str


class ConnectionPage(list[Connection]):
    """Connections sorted by id, without the rows that can't be read: these are named beside them.

    `last` is the id of the last row, readable or not, None when there is no row; `has_more` is False when
    no row follows it.
    """

    def __init__(
        self,
        connections: Iterable[Connection],
        unreadable: tuple[UnreadableRow, ...],
        last: ConnectionId | None,
        has_more: bool,
    ) -> None:
        super().__init__(connections)
        self.unreadable = unreadable
        self.last = last
        self.has_more = has_more


class Connections(ModelRepository[Connection, ConnectionId]):
    _table, _model = ConnectionRow, Connection

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def add(self, c: Connection) -> None:
        """Add a connection. Raises Failure ALREADY_EXISTS when a live one has the same names."""
        await self._add(c, f"A live connection of this subject at {c.integration!r}, label {c.label!r},")

    async def add_new(self, c: Connection) -> None:
        """Add a connection whose names were looked up and found free in this transaction.

        Raises Failure STORE_CONFLICT when they were taken meanwhile: look again.
        """
        if not await self._insert(c):
            raise Failure(ErrorCode.STORE_CONFLICT, "It was started meanwhile.")

    async def add_all(self, connections: Sequence[Connection]) -> None:
        """As `add_new`, for many."""
        rows = [column_values(connection, mac=row_mac(self._ring, connection)) for connection in connections]
        await insert_all(self._connection, ConnectionRow, rows)

    async def get_authentic(self, tenant: Tenant, id: ConnectionId) -> Connection | None:
        """The connection, for decisions by its names. Raises Failure AUTHORITY_BROKEN.

        One that is revoking or has ended isn't checked: it leases nothing, and nothing stops a revocation.
        """
        return await self.checked(await find_one(self._connection, self._table, tenant=tenant, id=id))

    async def find_in_any_tenant(self, id: ConnectionId) -> Connection | None:
        """The connection with this unguessable id. Raises as `get_authentic`."""
        return await self.checked(await find_one(self._connection, self._table, id=id))

    async def replace_names(self, after: Connection, *, expected: int) -> Connection:
        """As `replace`, for a change of what the authenticator covers. Raises Failure AUTHORITY_BROKEN
        unless the row has a good one."""
        before = await find_one(self._connection, self._table, tenant=after.tenant, id=after.id)
        if before is not None:
            authentic(self._ring, Connection, ConnectionRow, before)
        return await self._change(after, expected, mac=row_mac(self._ring, after))

    async def countersigned(self, after: Connection, older: IntegrationId | None = None) -> Values:
        """The worker's signature of names that a gateway signed, written with the first grant, or of those of
        a connection whose grants were the client's of the integration `older`. Raises Failure
        AUTHORITY_BROKEN."""
        if after.generation != 1 and older is None:
            return {}
        row = await find_one(self._connection, self._table, tenant=after.tenant, id=after.id)
        if row is None:
            return {}
        gateways = not row["generation"] and str(row["mac"]).startswith(f"{Signer.GATEWAY}.")
        if older is None and not gateways:
            return {}
        authentic(self._ring, Connection, ConnectionRow, row)
        return {"mac": row_mac(self._ring, after)}

    async def offer(self, pending: Connection, *, expected: int) -> Connection:
        """Write what a new link of a pending connection asks for. Raises as `replace` does."""
        return await self._change_only(pending, OFFERED, expected)

    async def position(self, tenant: Tenant, id: ConnectionId, *, for_share: bool = False) -> Position | None:
        """Where the connection is; `for_share`: locked against changes until this transaction ends.

        SQLite has no such clause and needs none: it writes in one transaction at a time.
        """
        query = _POSITION_FOR_SHARE if for_share else _POSITION
        row = await fetch_first(self._connection, query, {"tenant": tenant, "id": id})
        return None if row is None else _position(row)

    async def get_for_update(self, tenant: Tenant, id: ConnectionId) -> Connection | None:
        """The connection, locked against changes and shared locks until this transaction ends."""
        return await self._first(self._where(tenant=tenant, id=id).with_for_update(key_share=True))

    async def by_names(
        self, tenant: Tenant, integration_name: str, subject: str, label: str = "default"
    ) -> Connection | None:
        """The live connection with these names, or else the newest of the ended ones. Raises as
        `get_authentic`."""
        names = {"tenant": tenant, "integration": integration_name, "subject": subject, "label": label}
        return await self.checked(await fetch_first(self._connection, BY_NAMES, names))

    async def known_names(
        self, tenant: Tenant, integrations: Collection[str], subjects: Collection[str]
    ) -> set[tuple[str, str, str]]:
        """Integration, subject and label of every connection of these subjects there, ended ones included."""
        column = table_of(ConnectionRow).c
        query = select(column.integration, column.subject, column.label).where(
            column.tenant == tenant, column.integration.in_(integrations), column.subject.in_(subjects)
        )
        rows = await fetch_all(self._connection, query)
        return {(row["integration"], row["subject"], row["label"]) for row in rows}

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
    ) -> ConnectionPage:
        """Connections sorted by id, after the id `after`; filters narrow, None doesn't."""
        equal = {"integration": integration, "provider": provider, "subject": subject, "state": state}
        columns = {name: str(value) for name, value in equal.items() if value is not None}
        query = self._where(tenant=tenant, **columns)
        if expiring_before is not None:
            query = query.where(expires_before(expiring_before))
        return await self._readable(query, after, limit)

    async def failing(
        self, tenant: Tenant, integration_id: IntegrationId, after: str | None = None, limit: int = 500
    ) -> ConnectionPage:
        """Live connections of an integration whose last refresh failed, and those that may be trying
        something else that no row counts. Sorted by id, after the id `after`."""
        query = self._where(
            col(ConnectionRow.state).not_in(FINAL_STATES),
            or_(col(ConnectionRow.failures) > 0, _tries_uncounted()),
            tenant=tenant,
            integration_id=integration_id,
        )
        return await self._readable(query, after, limit)

    async def waiting_for_source_app(
        self, tenant: Tenant, app: AppId, after: str | None = None, limit: int = 500
    ) -> ConnectionPage:
        """Live connections for which tokens are exchanged in the name of `app`, and that have no
        first grant, or a last refresh that failed. Sorted by id, after the id `after`."""
        query = self._where(
            col(ConnectionRow.state).not_in(FINAL_STATES),
            or_(col(ConnectionRow.failures) > 0, col(ConnectionRow.state).in_(_WAITS)),
            tenant=tenant,
            source_app=app,
        )
        return await self._readable(query, after, limit)

    async def live_in_all_tenants(self, after: str | None = None, limit: int = 500) -> ConnectionPage:
        """Connections of every tenant of this cell that haven't ended, sorted by id."""
        return await self._readable(
            self._where(col(ConnectionRow.state).not_in(FINAL_STATES), _IS_HERE), after, limit
        )

    async def live_counts(self) -> tuple[int, int]:
        """How many connections of every tenant haven't ended, and how many of those are revoking: by indexes
        alone."""
        counts = [
            (await self._connection.execute(_COUNT.where(text(condition), _IS_HERE))).scalar_one()
            for condition in (LIVE_CONDITION, REVOKING_CONDITION)
        ]
        return counts[0], counts[1]

    async def past_consent(
        self, tenant: Tenant, ids: Collection[ConnectionId], *, refreshed: bool = False
    ) -> list[tuple[Connection, bool]]:
        """Those of these connections that are no longer pending, and whether a refresh can renew their main
        grant: one query for all that an import waits for. `refreshed`: without those whose first refresh is
        still to come, or under way.
        """
        row, grant = table_of(ConnectionRow), table_of(ConnectionGrantRow)
        mine = and_(
            grant.c.tenant == row.c.tenant, grant.c.connection_id == row.c.id, grant.c.slot == MAIN_SLOT
        )
        query = (
            select(row, grant.c.refreshable)
            .join_from(row, grant, mine, isouter=True)
            .where(row.c.tenant == tenant, row.c.id.in_(ids))
            .where(row.c.state != LifecycleState.PENDING_CONSENT.value)
        )
        if refreshed:
            first = and_(row.c.state == LifecycleState.ACTIVE.value, row.c.generation <= 1)
            query = query.where(
                ~(first & (row.c.failures == 0) & func.coalesce(grant.c.refreshable, false()))
            )
        rows = await fetch_all(self._connection, query)
        return [(read_model(Connection, ConnectionRow, row), bool(row["refreshable"])) for row in rows]

    async def any_live(self, tenant: Tenant, integration_id: IntegrationId) -> bool:
        """Whether a connection of the integration hasn't ended."""
        live = columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id)
        query = select(exists().where(live, col(ConnectionRow.state).not_in(FINAL_STATES)))
        return bool((await self._connection.execute(query)).scalar_one())

    async def others_fail(self, connection: Connection, after: datetime | None) -> bool:
        """Whether the last refresh of another active connection of its integration failed, `after` then."""
        row = table_of(ConnectionRow).c
        others = select(row.id).where(
            columns_equal(ConnectionRow, tenant=connection.tenant, integration_id=connection.integration_id),
            text(FAILING_CONDITION),
            row.id != connection.id,
        )
        late = others if after is None else others.where(row.last_failed_at > after)
        return (await self._connection.execute(late.limit(1))).first() is not None

    async def others_refused(self, connection: Connection, after: datetime) -> bool:
        """Whether another connection of its integration has ended as REFRESH_REFUSED after then."""
        row = table_of(ConnectionRow).c
        mine = columns_equal(
            ConnectionRow, tenant=connection.tenant, integration_id=connection.integration_id
        )
        refused = select(row.id).where(mine, text(REFUSED_CONDITION), row.id != connection.id)
        late = refused.where(row.changed_at > after).limit(1)
        return (await self._connection.execute(late)).first() is not None

    async def revoking_since_before(self, moment: datetime, limit: int) -> list[PendingRevocation]:
        """Connections of every tenant whose revocation began before then and hasn't ended, oldest first.

        Reads four columns, so that a row that can't be read as a whole is found too.
        """
        row = table_of(ConnectionRow).c
        query = (
            select(row.tenant, row.id, row.integration, row.changed_at.label("since"))
            .where(text(REVOKING_CONDITION), row.changed_at < moment)
            .order_by(row.changed_at, row.id)
        )
        return [PendingRevocation(**row) for row in await fetch_all(self._connection, query.limit(limit))]

    async def _readable(self, query: Select[Any], after: str | None, limit: int) -> ConnectionPage:
        """The query's rows sorted by id, after the id `after`."""
        query = query if after is None else query.where(col(ConnectionRow.id) > after)
        rows = await fetch_all(self._connection, query.order_by(col(ConnectionRow.id)).limit(limit))
        connections: list[Connection] = []
        unreadable: list[UnreadableRow] = []
        for row in rows:
            try:
                connections.append(read_model(Connection, ConnectionRow, row))
            except Failure as failure:
                about = row["id"], row["integration"], row["provider"], row["subject"]
                unreadable.append(UnreadableRow(*about, failure.detail))
        last = ConnectionId(rows[-1]["id"]) if rows else None
        return ConnectionPage(connections, tuple(unreadable), last, has_more=len(rows) == limit)

    async def _insert(self, model: Connection, **columns: Any) -> bool:
        return await super()._insert(model, mac=row_mac(self._ring, model), **columns)

    async def _change(self, model: Connection, expected: int, **columns: Any) -> Connection:
        if "mac" not in columns:
            columns |= await self.countersigned(model)
        return await super()._change(model, expected, **columns)

    async def checked(self, row: Values | None, *, may_have_ended: bool = True) -> Connection | None:
        """The row as `get_authentic` has it. `may_have_ended`: the audit log may tell of its end."""
        connection = None if row is None else read_model(Connection, ConnectionRow, row)
        if row is None or connection is None or connection.state is LifecycleState.REVOKING:
            return connection
        if not connection.state.is_final:
            require_signature(self._ring, connection, ConnectionRow, row)
            if may_have_ended:
                await require_none_put_back(self._connection, ConnectionRow, [connection])
        return connection


def _tries_uncounted() -> ColumnElement[bool]:
    """A revocation, a first token of a flow without consent, or late tokens to be verified."""
    state = col(ConnectionRow.state)
    by_itself = col(ConnectionRow.flow).in_([flow.value for flow in Flow if not flow.uses_browser])
    late = exists().where(
        col(LateTokensRow.tenant) == col(ConnectionRow.tenant),
        col(LateTokensRow.connection_id) == col(ConnectionRow.id),
    )
    return or_(state == LifecycleState.REVOKING.value, and_(state.in_(_WAITS), or_(by_itself, late)))


def _position(row: Values) -> Position:
    return Position(LifecycleState(row["state"]), row["generation"], MovePhase(row["phase"] or ""))


def expires_before(moment: datetime) -> ColumnElement[bool]:
    """Whether the access token of a connection's main grant ends before then."""
    same = and_(
        col(ConnectionGrantRow.tenant) == col(ConnectionRow.tenant),
        col(ConnectionGrantRow.connection_id) == col(ConnectionRow.id),
        col(ConnectionGrantRow.slot) == MAIN_SLOT,
    )
    return exists().where(same, col(ConnectionGrantRow.expires_at) < moment)
