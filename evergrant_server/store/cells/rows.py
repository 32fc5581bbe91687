"""A tenant's rows as two cells compare them: ranges of rows with their digests, and the rows of a range.

Sealed columns are compared and moved as they are: they stand under the tenant's keys, which are handed over
sealed to the other cell. What a cell signs or wraps itself is no part of a digest.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import JSON, ColumnElement, LargeBinary, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator

from evergrant_server.core.cells.moves import RowRange
from evergrant_server.core.connections.account import PIN
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.connections.account_identifiers import AccountIdentifierRow
from evergrant_server.store.connections.tables import FINAL_STATES, AttemptRow, ConnectionRow
from evergrant_server.store.database.columns import METADATA, SealedBytes, UtcDateTime, table_of
from evergrant_server.store.database.rows import Repository, Values, fetch_all
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import NO_CONNECTION, KeyRow

# Configuration, credentials, connections and all that a refresh needs. Every other table stays: a test has
# the decision about each (tests/cells/test_tables.py).
_MOVED = {
    *("admin_login", "app", "app_credential", "app_key", "client_consent", "client_login", "definition"),
    *("delegation_rule", "directory_user", "event_receiver", "integration", "legal_hold", "oauth_client"),
    *("offboarding_rule", "permit", "refresh_token", "token_family", "trusted_issuer", "webhook"),
    *("account_identifier", "attempt", "connection", "connection_grant", "key", "late_tokens", "proof_key"),
    "replaced_grant",
}
RANGE_ROWS = 100  # at least: rows of one first key are never parted
_OWN = frozenset({"mac", "destination_mac", "account_mac"})  # what each cell makes with its own keys
_WRAPPING = frozenset({"sealed_key", "wrapping_key_id"})  # of a tenant's key, which roots of the cell wrap
PINNED = "pin"  # beside a connection's columns: the account identifier that its `account_mac` covers
# What changes while leases go on and no credential is spent: of these few facts tell whether anything did.
_LARGE = frozenset({"account_identifier", "attempt", "connection", "connection_grant", "key"})
_ORDERS = ("erasure", "incident", "bulk_order", "agent_stop")
_CONNECTION, _KEY = table_of(ConnectionRow), table_of(KeyRow)


@cache
def moved_tables() -> tuple[str, ...]:
    """The names of the tables that move, parents before children."""
    return tuple(table.name for table in METADATA.sorted_tables if table.name in _MOVED)


def is_large(name: str) -> bool:
    """Whether the rows of this table are as many as connections."""
    return name in _LARGE


class MovedRows(Repository):
    """The rows of one tenant in the tables that move."""

    async def ranges(self, tenant: Tenant, name: str, after: str, most: int) -> list[RowRange]:
        """Up to so many ranges that follow the first key `after`; the last one of a table has no end."""
        table = METADATA.tables[name]
        first, found = _first_key(table), list[RowRange]()
        mine = select(first).where(_moving(table, tenant))
        while len(found) < most:
            behind = mine.where(first > after).order_by(first).limit(1).offset(RANGE_ROWS - 1)
            last: str | None = (await self._connection.execute(behind)).scalar()
            found.append(await self.range_of(tenant, name, after, last))
            if last is None:
                break
            after = last
        return found

    async def range_of(self, tenant: Tenant, name: str, after: str, last: str | None) -> RowRange:
        """The range behind the key `after`, up to the key `last` or the end of the table."""
        table = METADATA.tables[name]
        rows = await self._between(tenant, table, after, last)
        digest = hashlib.sha256(b"\x00")  # a leaf of RFC 6962, section 2.1
        for row in rows:
            digest.update(_canonical(table, row))
        return RowRange(last=last, rows=len(rows), digest=digest.hexdigest())

    async def read(
        self, tenant: Tenant, name: str, after: str, last: str | None, most_bytes: int
    ) -> tuple[list[Values], str | None]:
        """The rows of a range as JSON values, and the key behind which the rest follows, if any does."""
        table = METADATA.tables[name]
        rows = await self._between(tenant, table, after, last)
        if table is _CONNECTION:
            pins = await self._pins(tenant, [row["id"] for row in rows])
            rows = [{**row, PINNED: pins.get(row["id"])} for row in rows]
        first, size, whole = _first_key(table).name, 0, list[Values]()
        for key, group in groupby(rows, key=lambda row: row[first]):
            encoded = [_encoded(row) for row in group]
            size += len(json.dumps(encoded))
            if whole and size > most_bytes:
                return whole, str(whole[-1][first])
            whole += encoded
            del key
        return whole, None

    async def put(self, tenant: Tenant, name: str, after: str, last: str | None, rows: list[Values]) -> None:
        """Have exactly these rows in the range. Others of it are deleted, with what refers to them.

        Raises Failure STORE_CONFLICT, at the end of the transaction, where a unique index has a row that
        stands in another range still.
        """
        table = METADATA.tables[name]
        there = await self._between(tenant, table, after, last)
        kept = {_key(table, row) for row in rows}
        gone = [row for row in there if _key(table, row) not in kept]
        for row in gone:
            same = (column == row[column.name] for column in table.primary_key)
            await self._delete_with_children(table, _all(same))
        if table is _KEY:  # a tenant's own come with the offer
            rows = [row for row in rows if row["connection_id"] != NO_CONNECTION]
        if rows:
            insert = sqlite.insert if self._connection.dialect.name == "sqlite" else postgresql.insert
            adding = insert(table)
            changed = {column.name: adding.excluded[column.name] for column in table.c}
            keys = [column.name for column in table.primary_key]
            await self._connection.execute(
                adding.on_conflict_do_update(index_elements=keys, set_=changed), rows
            )

    async def clear(self, tenant: Tenant, name: str) -> None:
        """Delete the tenant's rows of a table, with what refers to them."""
        table = METADATA.tables[name]
        await self._delete_with_children(table, table.c.tenant == tenant)

    async def versions(self, tenant: Tenant) -> list[list[str | int]]:
        """Facts of the large tables that another number, revision or moment of a connection changes."""
        seen: list[list[str | int]] = []
        for name in sorted(_LARGE):
            table = METADATA.tables[name]
            parts: list[ColumnElement[Any]] = [func.count(), func.coalesce(func.sum(table.c.revision), 0)]
            if table is _CONNECTION:
                parts.append(func.max(table.c.changed_at))
            row = (await self._connection.execute(select(*parts).where(_moving(table, tenant)))).one()
            seen.append([name, *(_text(value) for value in row)])
        return seen

    async def spending(self, tenant: Tenant) -> int:
        """How many single-use credentials may be on their way to a provider."""
        attempt, integration = table_of(AttemptRow).c, table_of(IntegrationRow).c
        opened = select(func.count()).where(attempt.tenant == tenant, attempt.outcome.is_(None))
        registering = select(func.count()).where(
            integration.tenant == tenant, integration.registration_sent_at.is_not(None)
        )
        numbers = [(await self._connection.execute(query)).scalar_one() for query in (opened, registering)]
        return int(sum(numbers))

    async def orders_under_way(self, tenant: Tenant) -> list[str]:
        """The ids of erasures, incidents, bulk orders and stops of agents that go on: they would be left
        behind."""
        found: list[str] = []
        for name in _ORDERS:
            table = METADATA.tables[name]
            query = select(table.c.id).where(table.c.tenant == tenant, table.c.finished_at.is_(None)).limit(3)
            found += (await self._connection.execute(query)).scalars()
        return found

    async def tree_ends(self, tenant: Tenant) -> list[str]:
        """Shard, size and peaks of each tree of the tenant's audit log, in order."""
        tree = METADATA.tables["audit_tree"].c
        rows = await fetch_all(
            self._connection, select(tree.shard, tree.size, tree.peaks).where(tree.tenant == tenant)
        )
        return sorted(f"{row['shard']} {row['size']} {bytes(row['peaks']).hex()}" for row in rows)

    async def is_empty(self, tenant: Tenant) -> bool:
        """Whether the tenant has neither connections nor keys here."""
        for table in (_CONNECTION, _KEY):
            there = await self._connection.execute(
                select(table.c.id).where(table.c.tenant == tenant).limit(1)
            )
            if there.first() is not None:
                return False
        return True

    async def live_by_expiry(self, tenant: Tenant) -> list[str]:
        """The ids of connections that haven't ended, those first whose access tokens end first."""
        c, g = _CONNECTION.c, METADATA.tables["connection_grant"].c
        same = (g.tenant == c.tenant) & (g.connection_id == c.id) & (g.slot == MAIN_SLOT)
        query = select(c.id).join_from(_CONNECTION, METADATA.tables["connection_grant"], same, isouter=True)
        query = query.where(c.tenant == tenant, c.state.not_in(FINAL_STATES))
        ids = (await self._connection.execute(query.order_by(g.expires_at, c.id))).scalars()
        return list(ids)

    async def destinations(self, tenant: Tenant, connection_ids: Iterable[str]) -> dict[str, Values]:
        """Of each of these connections its integration, its state, and where that sends its secrets."""
        c, i = _CONNECTION.c, table_of(IntegrationRow).c
        query = (
            select(c.id, c.integration_id, c.state, i.destination_mac.label("made"))
            .join_from(
                _CONNECTION, table_of(IntegrationRow), (i.tenant == c.tenant) & (i.id == c.integration_id)
            )
            .where(c.tenant == tenant, c.id.in_(list(connection_ids)))
        )
        return {row["id"]: row for row in await fetch_all(self._connection, query)}

    async def _between(self, tenant: Tenant, table: Table, after: str, last: str | None) -> list[Values]:
        first = _first_key(table)
        query = select(table).where(_moving(table, tenant), first > after)
        if last is not None:
            query = query.where(first <= last)
        rows = await fetch_all(self._connection, query)
        return sorted(rows, key=lambda row: _key(table, row))

    async def _pins(self, tenant: Tenant, ids: list[str]) -> dict[str, str]:
        pin = table_of(AccountIdentifierRow).c
        query = select(pin.connection_id, pin.identifier_hash)
        query = query.where(pin.tenant == tenant, pin.connection_id.in_(ids), pin.name == PIN)
        rows = await fetch_all(self._connection, query)
        return {row["connection_id"]: row["identifier_hash"] for row in rows}

    async def _delete_with_children(self, table: Table, which: ColumnElement[bool]) -> None:
        for child in METADATA.sorted_tables:
            for reference in child.foreign_key_constraints:
                if reference.referred_table is not table:
                    continue
                pairs = [(e.parent, e.column) for e in reference.elements if e.parent.name != "tenant"]
                below = _all(child.c[mine.name].in_(select(theirs).where(which)) for mine, theirs in pairs)
                tenants = child.c.tenant.in_(select(table.c.tenant).where(which))
                await self._delete_with_children(child, tenants & below)
        await self._run(delete(table).where(which))


def decoded(name: str, row: Values) -> Values:
    """A row of another cell's JSON as this one's columns. Raises ValueError, KeyError for another shape."""
    table = METADATA.tables[name]
    return {column.name: _value(column.type, row[column.name]) for column in table.c}


def _value(kind: Any, value: Any) -> Any:
    if value is None or isinstance(kind, JSON):
        return value
    if isinstance(kind, SealedBytes):
        return Sealed(base64.b64decode(value))
    if isinstance(kind, UtcDateTime):
        return datetime.fromisoformat(value)
    base = kind.impl if isinstance(kind, TypeDecorator) else kind
    return base64.b64decode(value) if isinstance(base, LargeBinary) else value


def _canonical(table: Table, row: Values) -> bytes:
    own = _OWN | _WRAPPING if table is _KEY and row["connection_id"] == NO_CONNECTION else _OWN
    facts = {name: value for name, value in row.items() if name not in own}
    return (
        json.dumps([table.name, facts], sort_keys=True, separators=(",", ":"), default=_text).encode() + b"\n"
    )


def _encoded(row: Values) -> Values:
    return {
        name: _text(value) if isinstance(value, bytes | datetime) else value for name, value in row.items()
    }


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(bytes(value)).decode()
    return value.isoformat() if isinstance(value, datetime) else value


def _moving(table: Table, tenant: Tenant) -> ColumnElement[bool]:
    """The tenant's rows that move. Keys of stories don't: what they seal lies in this cell's Temporal."""
    mine = table.c.tenant == tenant
    return mine & (table.c.purpose != KeyPurpose.STORY.value) if table is _KEY else mine


def _first_key(table: Table) -> Any:
    return next(column for column in table.primary_key if column.name != "tenant")


def _key(table: Table, row: Values) -> tuple[str, ...]:
    return tuple(str(row[column.name]) for column in table.primary_key)


def _all(conditions: Iterable[ColumnElement[bool]]) -> ColumnElement[bool]:
    first, *others = conditions
    for condition in others:
        first = first & condition
    return first
