"""Which rows go when a connection, a subject or a tenant is erased.

Not from a list: a table with a `connection_id` goes with the connection, one with a `subject` with the
subject, and what refers to their rows goes with them. Every other column stays while its tenant does; a test,
`tests/conformance/store/erasure/test_personal_columns.py`, has the decision about each, and fails for a new
one without a decision.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Table, delete, select, tuple_
from sqlmodel import col

from evergrant_server.core.connections.erasure import TargetKind
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.names import connection_workflow_id, replaced_grants_workflow_id
from evergrant_server.store.access import AppRow
from evergrant_server.store.audit.checkpoints import AuditHeadRow
from evergrant_server.store.audit_tables import (
    AuditFiledRow,
    AuditNodeRow,
    AuditRow,
    AuditShardRow,
    AuditTreeRow,
)
from evergrant_server.store.connections.bulk import BulkOrderRow
from evergrant_server.store.connections.tables import AttemptRow, ConnectionRow
from evergrant_server.store.database.columns import METADATA, table_of
from evergrant_server.store.database.rows import Repository, fetch_all
from evergrant_server.store.decisions import AccessRequestRow, ApprovalRow
from evergrant_server.store.erasure.orders import AuditPruningRow, ErasureRow, LegalHoldRow
from evergrant_server.store.exports import ExportRow
from evergrant_server.store.keys import KeyRow
from evergrant_server.store.outbox import OutboxRow
from evergrant_server.store.permits import PermitRow
from evergrant_server.store.tenants import TenantStandingRow
from evergrant_server.store.webhooks import DeliveryRow, EventRow

# Evidence, without personal values: what was erased when, that the log is whole, and that the tenant has
# ended.
_EVIDENCE = tuple(
    table_of(row)
    for row in (
        *(AuditRow, AuditTreeRow, AuditNodeRow, AuditHeadRow, AuditShardRow, AuditFiledRow),
        AuditPruningRow,
        *(ErasureRow, LegalHoldRow, TenantStandingRow),
    )
)
_CONNECTION = table_of(ConnectionRow)
# JSON that may name a subject, in rows that stay while their tenant does
NAMING = (
    (table_of(ApprovalRow), "body"),
    (table_of(AccessRequestRow), "permit"),
    (table_of(ExportRow), "filters"),
    (table_of(BulkOrderRow), "filters"),
)
SUBJECT_MEMBERS = ("subject", "subjects", "claimed_subject")  # that name one, in JSON
_AT_ONCE = 500  # rows of a table, in one step of a tenant's erasure


class Erased(NamedTuple):
    """How many keys and other rows are gone."""

    keys: int
    rows: int


class PersonalRows(Repository):
    """Deletes rows of every table, whatever they hold: also those that can't be read any more."""

    async def erase_connection(self, tenant: Tenant, id: ConnectionId) -> Erased:
        """Delete the connection, its keys, and every row that names it."""
        rows = await self._delete_all("connection_id", tenant, id)
        targets = [connection_workflow_id(tenant, id), replaced_grants_workflow_id(tenant, id)]
        told = _delivered_to(targets)
        rows["outbox"] = await self._run(delete(table_of(OutboxRow)).where(told))
        rows["connection"] = await self._run(
            delete(_CONNECTION).where(_CONNECTION.c.tenant == tenant, _CONNECTION.c.id == id)
        )
        keys = rows.pop(table_of(KeyRow).name)
        return Erased(keys, sum(rows.values()))

    async def erase_subject(self, tenant: Tenant, subject: str) -> Erased:
        """Delete every row that names the subject, but its connections, and what was asked about it."""
        rows = sum((await self._delete_all("subject", tenant, subject)).values())
        for table, column in NAMING:
            naming = await self._naming(table, column, tenant, subject)
            for some in _parts(naming):
                rows += await self._run(delete(table).where(table.c.tenant == tenant, table.c.id.in_(some)))
        return Erased(0, rows)

    async def objects_of_connection(self, tenant: Tenant, id: ConnectionId) -> list[str]:
        """The ids that audit records about the connection are about. No record is about an attempt, of which
        a connection has thousands."""
        tables = _with("connection_id", without=(table_of(AttemptRow),))
        return [id, *await self._ids(tables, tenant, "connection_id", id)]

    async def objects_of_subject(self, tenant: Tenant, subject: str) -> list[str]:
        """The same of what the subject did, beside its connections."""
        ids = await self._ids(_with("subject", without=(_CONNECTION,)), tenant, "subject", subject)
        return ids + [
            id for table, column in NAMING for id in await self._naming(table, column, tenant, subject)
        ]

    async def erase_of_tenant(self, tenant: Tenant, keep: Collection[str] = ()) -> Erased:
        """Delete some of a tenant's rows: keys first, children before parents. `Erased(0, 0)`: none.

        `keep`: the names of further tables that stay.
        """
        for table in (table_of(KeyRow), *reversed(METADATA.sorted_tables)):
            if table in _EVIDENCE or table.name in keep or "tenant" not in table.c:
                continue
            key = [column for column in table.primary_key.columns if column.name != "tenant"]
            first = select(*key).where(table.c.tenant == tenant).limit(_AT_ONCE)
            picked = [tuple(row) for row in await self._connection.execute(first)]
            if not picked:
                continue
            some = delete(table).where(table.c.tenant == tenant, tuple_(*key).in_(picked))
            gone = await self._run(some)
            return Erased(gone, 0) if table is table_of(KeyRow) else Erased(0, gone)
        return Erased(0, 0)

    async def has_pending_deliveries(self, tenant: Tenant, id: ConnectionId) -> bool:
        """Whether a webhook is still to be told of the connection."""
        event, delivery = table_of(EventRow).c, table_of(DeliveryRow).c
        mine = (event.tenant == tenant) & (event.connection_id == id)
        told = (delivery.tenant == event.tenant) & (delivery.event_id == event.id)
        query = select(delivery.id).where(mine, told, delivery.status == "pending").limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def permits_naming(self, tenant: Tenant, subject: str) -> list[tuple[str, str]]:
        """App and name of each permit that names exactly this subject: an admin has to change them first."""
        permit, app = table_of(PermitRow).c, table_of(AppRow).c
        named = select(app.name.label("app"), permit.name, permit.subjects).where(
            permit.tenant == tenant, app.tenant == permit.tenant, app.id == permit.app_id
        )
        rows = await fetch_all(self._connection, named.order_by(app.name, permit.name))
        return [(row["app"], row["name"]) for row in rows if subject in row["subjects"]]

    async def connections_of(
        self, tenant: Tenant, kind: TargetKind, target: str, after: str, limit: int
    ) -> list[dict[str, Any]]:
        """Id and moment of creation of the connections that an erasure is about, by id, after `after`."""
        wanted = _CONNECTION.c.tenant == tenant
        if kind is not TargetKind.TENANT:
            wanted &= _CONNECTION.c["id" if kind is TargetKind.CONNECTION else "subject"] == target
        query = select(_CONNECTION.c.id, _CONNECTION.c.created_at).where(wanted, _CONNECTION.c.id > after)
        return await fetch_all(self._connection, query.order_by(_CONNECTION.c.id).limit(limit))

    async def _delete_all(self, column: str, tenant: Tenant, value: str) -> dict[str, int]:
        """Delete the rows of every table with this column, and those that refer to them; returns how many."""
        gone: dict[str, int] = {}
        tables = _with(column, without=(_CONNECTION,))
        for table in reversed(METADATA.sorted_tables):
            if table in tables:
                mine = (table.c.tenant == tenant) & (table.c[column] == value)
            elif (mine := _of_deleted(table, tables, column, tenant, value)) is None:
                continue
            gone[table.name] = await self._run(delete(table).where(mine))
        return gone

    async def _ids(self, tables: Sequence[Table], tenant: Tenant, column: str, value: str) -> list[str]:
        ids: list[str] = []
        for table in tables:
            if "id" in table.c:
                query = select(table.c.id).where(table.c.tenant == tenant, table.c[column] == value)
                ids += (await self._connection.execute(query)).scalars()
        return ids

    async def _naming(self, table: Table, column: str, tenant: Tenant, subject: str) -> list[str]:
        query = select(table.c.id, table.c[column]).where(table.c.tenant == tenant)
        return [row["id"] for row in await fetch_all(self._connection, query) if names(row[column], subject)]


def names(value: object, subject: str) -> bool:
    """Whether a member of this JSON, at any depth, names the subject."""
    if isinstance(value, list):
        return any(names(inner, subject) for inner in cast("list[object]", value))
    if not isinstance(value, dict):
        return False
    members = cast("dict[str, object]", value)
    return any(
        (member in SUBJECT_MEMBERS and _is_or_has(inner, subject)) or names(inner, subject)
        for member, inner in members.items()
    )


def _is_or_has(value: object, subject: str) -> bool:
    return value == subject or (isinstance(value, list) and subject in cast("list[object]", value))


def text_names(column: ColumnElement[str], subject: str) -> ColumnElement[bool]:
    """True for canonical JSON that may name the subject: `names` says whether it does."""
    return column.contains(json.dumps(subject), autoescape=True)


def _with(column: str, without: Sequence[Table] = ()) -> list[Table]:
    return [table for table in METADATA.sorted_tables if column in table.c and table not in without]


def _of_deleted(
    table: Table, tables: Sequence[Table], column: str, tenant: Tenant, value: str
) -> ColumnElement[bool] | None:
    """Which rows refer to deleted ones, where the database doesn't delete them by itself."""
    for reference in table.foreign_key_constraints:
        parent = reference.referred_table
        if parent in tables and reference.ondelete != "CASCADE":
            (name,) = [name for name in reference.column_keys if name != "tenant"]
            gone = select(parent.c.id).where(parent.c.tenant == tenant, parent.c[column] == value)
            return (table.c.tenant == tenant) & table.c[name].in_(gone)
    return None


def _delivered_to(targets: Sequence[str]) -> ColumnElement[bool]:
    return col(OutboxRow.target).in_(targets) & col(OutboxRow.delivered_at).is_not(None)


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]
