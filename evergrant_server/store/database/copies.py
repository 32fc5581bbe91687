"""Two copies of one database: what the older one lacks, and the tables that a restore sets aside.

Reads columns that every schema from the first one on has, so that a copy of an earlier version can be
compared before it is migrated. Checks no row: the verification of a backup does.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import MetaData, Table, func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store.access import AppCredentialRow, AppKeyRow, AppRow
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow
from evergrant_server.store.database.columns import METADATA, Row, table_of
from evergrant_server.store.database.engine import DatabaseConnection, open_database
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.database.rows import Values, fetch_all
from evergrant_server.store.erasure.orders import ErasureRow
from evergrant_server.store.permits import PermitRow
from evergrant_server.store.rotation.processes import Process, Processes, that_go_on
from evergrant_server.store.trusted_issuers import TrustedIssuerRow
from evergrant_server.store.webhooks import WebhookRow

_PAGE = 500
_MOST_NAMED = 100
_ENDED = (LifecycleState.REVOKING.value, *FINAL_STATES)
_WITHDRAWN = (AppRow, AppKeyRow, AppCredentialRow, PermitRow, TrustedIssuerRow, WebhookRow)
_SERVER_ENVIRONMENT = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "sslmode": "PGSSLMODE"}


class Ref(NamedTuple):
    tenant: Tenant
    id: ConnectionId


class MovedOn(NamedTuple):
    """Connections of one page that live in the older copy. `refreshed`: the newer copy has a newer grant, so
    that the older one's refresh token may be spent. `ended`: it was revoked or erased since."""

    refreshed: list[Ref]
    ended: list[Ref]


class Behind(NamedTuple):
    """How much the older of two copies lacks. `withdrawn`: how many apps, keys, permits and so on were taken
    back since, by their table; `named` has the first ids of everything that is counted."""

    refreshed: int
    ended: int
    new_connections: int
    audit_records: int
    erasures: int
    withdrawn: dict[str, int]
    named: dict[str, list[str]]


class Copy:
    """One transaction of a copy: a database, or a schema of PostgreSQL that was set aside."""

    def __init__(self, connection: DatabaseConnection, schema: str | None = None) -> None:
        self.connection = connection
        self._options: dict[str, Any] = {} if schema is None else {"schema_translate_map": {None: schema}}

    async def rows(self, query: Any) -> list[Values]:
        return await fetch_all(self.connection, query.execution_options(**self._options))

    async def table_counts(self) -> dict[str, int]:
        """How many rows each table has; a table that an earlier schema lacks is left out."""
        there = await self.connection.run_sync(_table_names)
        counts: dict[str, int] = {}
        for table in METADATA.sorted_tables:
            if table.name in there:
                (row,) = await self.rows(select(func.count().label("number")).select_from(table))
                counts[table.name] = int(row["number"])
        return counts

    async def newest_at(self) -> datetime | None:
        """When the newest record of the audit log was written, of those at the ends of trees."""
        record, tree = table_of(AuditRow).c, table_of(AuditTreeRow).c
        last = (record.tenant == tree.tenant) & (record.shard == tree.shard) & (record.seq == tree.size - 1)
        newest = select(func.max(record.at).label("at")).join_from(
            table_of(AuditRow), table_of(AuditTreeRow), last
        )
        at: datetime | None = (await self.rows(newest))[0]["at"]
        return at

    async def tree_sizes(self) -> dict[tuple[str, str], int]:
        tree = table_of(AuditTreeRow).c
        rows = await self.rows(select(tree.tenant, tree.shard, tree.size))
        return {(row["tenant"], row["shard"]): int(row["size"]) for row in rows}

    async def pages(self, table: Table, *columns: str) -> AsyncIterator[list[Values]]:
        """Every row of a table with an id, by its id; `columns` beside tenant and id."""
        shown, after = [table.c[name] for name in ("tenant", "id", *columns)], ""
        while True:
            rows = await self.rows(select(*shown).where(table.c.id > after).order_by(table.c.id).limit(_PAGE))
            if not rows:
                return
            yield rows
            after = rows[-1]["id"]

    async def by_ids(self, table: Table, ids: list[str], *columns: str) -> dict[str, Values]:
        shown = [table.c[name] for name in ("tenant", "id", *columns)]
        rows = await self.rows(select(*shown).where(table.c.id.in_(ids)))
        return {row["id"]: row for row in rows}


def _table_names(connection: Any) -> set[str]:
    there = MetaData()
    there.reflect(connection)
    return set(there.tables)


async def what_is_behind(older: Copy, newer: Copy) -> Behind:
    """Compare two copies of one database, in pages."""
    sizes, before = await newer.tree_sizes(), await older.tree_sizes()
    records = sum(max(size - before.get(place, 0), 0) for place, size in sizes.items())
    counts: Counter[str] = Counter()
    named: dict[str, list[str]] = {}

    def note(kind: str, ids: Sequence[str]) -> None:
        counts[kind] += len(ids)
        if ids:
            first = named.setdefault(kind, [])
            first += ids[: _MOST_NAMED - len(first)]

    async for moved in moved_on(older, newer):
        note("refreshed", [ref.id for ref in moved.refreshed])
        note("ended", [ref.id for ref in moved.ended])
    async for ids in _only_in(newer, older, table_of(ConnectionRow)):
        note("new_connections", ids)
    async for ids in _only_in(newer, older, table_of(ErasureRow)):
        note("erasures", ids)
    for table in map(table_of, _WITHDRAWN):
        async for ids in _only_in(older, newer, table):
            note(table.name, ids)
    async for ids in _revoked_keys(older, newer):
        note(table_of(AppKeyRow).name, ids)
    withdrawn = {name: counts[name] for name in map(_name_of, _WITHDRAWN) if counts[name]}
    kinds = ("refreshed", "ended", "new_connections", "erasures")
    return Behind(
        **{kind: counts[kind] for kind in kinds}, audit_records=records, withdrawn=withdrawn, named=named
    )


def _name_of(row: type[Row]) -> str:
    return table_of(row).name


async def moved_on(older: Copy, newer: Copy) -> AsyncIterator[MovedOn]:
    """What became of the live connections of the older copy, page by page."""
    table, columns = table_of(ConnectionRow), ("state", "generation")
    async for page in older.pages(table, *columns):
        live = [row for row in page if row["state"] not in _ENDED]
        now = await newer.by_ids(table, [row["id"] for row in live], *columns)
        moved = MovedOn([], [])
        for row in live:
            ref, after = Ref(Tenant(row["tenant"]), ConnectionId(row["id"])), now.get(row["id"])
            if after is None or after["state"] in _ENDED:
                moved.ended.append(ref)
            elif after["generation"] > row["generation"]:
                moved.refreshed.append(ref)
        yield moved


async def _revoked_keys(older: Copy, newer: Copy) -> AsyncIterator[list[str]]:
    keys = table_of(AppKeyRow)
    async for page in older.pages(keys, "revoked_at"):
        live = [row["id"] for row in page if row["revoked_at"] is None]
        now = await newer.by_ids(keys, live, "revoked_at")
        yield [id for id in live if id in now and now[id]["revoked_at"] is not None]


async def _only_in(here: Copy, there: Copy, table: Table) -> AsyncIterator[list[str]]:
    async for page in here.pages(table):
        ids = [row["id"] for row in page]
        known = await there.by_ids(table, ids)
        yield [id for id in ids if id not in known]


@asynccontextmanager
async def reading(url: str, schema: str | None = None) -> AsyncGenerator[Copy]:
    """One snapshot of a database of any version. Raises Failure STORE_UNAVAILABLE."""
    database = open_database(url, limits=False)
    try:
        with translate_errors():
            async with database.read() as connection:
                yield Copy(connection, schema)
    finally:
        await database.close()


async def live_processes(copy: Copy, now: datetime) -> list[Process]:
    """The processes of the installation that use this database now. Raises as `reading`, where its schema has
    no rows of them."""
    return that_go_on(await Processes(copy.connection, now).all())


async def set_aside(url: str, name: str) -> None:
    """PostgreSQL: keep every table in a schema of this name, and make `public` empty. Raises Failure
    STORE_UNAVAILABLE where the role owns neither."""
    await _run(
        url,
        f'ALTER SCHEMA public RENAME TO "{name}"',
        "CREATE SCHEMA public",
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
    )


async def put_back(url: str, name: str) -> None:
    """PostgreSQL: undo `set_aside`; what `public` has got meanwhile is dropped."""
    await _run(url, "DROP SCHEMA public CASCADE", f'ALTER SCHEMA "{name}" RENAME TO public')


async def _run(url: str, *statements: str) -> None:
    database = open_database(url, limits=False)
    try:
        with translate_errors():
            async with database.write() as connection:
                for statement in statements:
                    await connection.exec_driver_sql(statement)
    finally:
        await database.close()


async def may_replicate(url: str) -> bool:
    """Whether PostgreSQL gives this role a base backup."""
    query = text("SELECT rolreplication OR rolsuper AS may FROM pg_roles WHERE rolname = current_user")
    async with reading(url) as copy:
        (row,) = await copy.rows(query)
    return bool(row["may"])


def libpq_environment(url: str) -> Mapping[str, str]:
    """The variables by which PostgreSQL's own programs reach this database; the password is one of them, so
    that no command line has it."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        return {}
    query = {name: value for name, value in parsed.query.items() if isinstance(value, str)}
    values = {"host": parsed.host, "port": parsed.port, "user": parsed.username, **query}
    values["sslmode"] = query.get("sslmode") or query.get("ssl")
    found = {
        variable: str(values[name]) for name, variable in _SERVER_ENVIRONMENT.items() if values.get(name)
    }
    if parsed.password is not None:
        found["PGPASSWORD"] = str(parsed.password)
    return {**found, "PGDATABASE": parsed.database or ""}
