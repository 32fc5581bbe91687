"""The roles of processes on PostgreSQL: each reads every row, and writes what its code writes.

A stolen gateway signs no row of authority; with a role of its own it can't write one either (ADR 0064). The
API changes no record of the audit log, and no process makes or drops tables (ADR 0126).
"""

import base64
import hashlib
import hmac
import secrets
from collections import defaultdict
from typing import NamedTuple

from sqlalchemy import Column, Connection, Table, text
from sqlalchemy.dialects import postgresql

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.store.access import AppKeyUseRow, LeaseUseRow
from evergrant_server.store.audit.checkpoints import AuditAnchorRow, AuditCheckpointRow
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from evergrant_server.store.authentication import AppAssertionRow
from evergrant_server.store.authority.covered_fields import GATEWAY_MAY_WRITE
from evergrant_server.store.authority.scan import ALL
from evergrant_server.store.connections.connections import OFFERED
from evergrant_server.store.connections.tables import ConnectionRow, UsageRow
from evergrant_server.store.database import schema
from evergrant_server.store.database.columns import METADATA, Row, table_of
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.decisions import USED, CallApprovalRow
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import KeyRow
from evergrant_server.store.outbox import OutboxRow
from evergrant_server.store.permits import PermitUseRow
from evergrant_server.store.root_keys import RootKeyRow
from evergrant_server.store.rotation.processes import ProcessRow
from evergrant_server.store.webhooks import DeliveryRow

# Records and what they lead to, the key that seals an approval's call, and request states that are used up.
_ADDED: tuple[type[Row], ...] = (AuditRow, OutboxRow, DeliveryRow, KeyRow, AppAssertionRow)
# The ends of trees, and when and what was used.
_COUNTED: tuple[type[Row], ...] = (
    *(AuditTreeRow, UsageRow, AppKeyUseRow, PermitUseRow, LeaseUseRow),
    ProcessRow,  # who lives: a gateway says so of itself
)
# The columns of other rows. Those of an integration, of a key and of a root decide nothing: a row lock needs
# a column to change.
_CHANGED: dict[type[Row], tuple[str, ...]] = {
    CallApprovalRow: (*USED, "mac", "revision"),
    ConnectionRow: (*OFFERED, "revision"),
    IntegrationRow: ("created_at",),
    KeyRow: ("created_at",),
    RootKeyRow: ("created_at",),
}
# What the API adds to and never rewrites: workers erase what records say.
_KEPT_BY_API: tuple[type[Row], ...] = (AuditRow, AuditCheckpointRow, AuditAnchorRow)
_quoted = postgresql.dialect().identifier_preparer.quote_identifier
_FORBIDDEN = ("TRUNCATE", "TRIGGER")
PROCESSES = (Role.WORKER, Role.API, Role.GATEWAY)
WORDS = {Role.WORKER: "a worker", Role.API: "the API", Role.GATEWAY: "a gateway"}
_MOST_NAMED = 5
# What no grant gives, and none takes away. Who makes functions where the tables are can have others run them.
_BY_NATURE = text(
    'SELECT rolsuper AS "is a superuser", rolcreaterole AS "makes roles",'
    " has_schema_privilege(rolname, current_schema(), 'CREATE') AS \"makes tables and functions\","
    " EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace"
    "  AND c.relkind = 'r' AND pg_has_role(rolname, c.relowner, 'MEMBER')) AS \"owns tables\""
    " FROM pg_roles WHERE rolname = :role"
)
_ROUNDS = 4096  # as PostgreSQL makes them
# Every right of a role on each column here, also by what it is a member of.
_RIGHTS = text(
    "SELECT c.relname, a.attname, "
    " has_column_privilege(:role, c.oid, a.attnum, 'SELECT') AS \"SELECT\","
    " has_column_privilege(:role, c.oid, a.attnum, 'INSERT') AS \"INSERT\","
    " has_column_privilege(:role, c.oid, a.attnum, 'UPDATE') AS \"UPDATE\","
    " has_table_privilege(:role, c.oid, 'DELETE') AS \"DELETE\","
    + ",".join(f" has_table_privilege(:role, c.oid, '{right}') AS \"{right}\"" for right in _FORBIDDEN)
    + " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'"
)
# The tables here on which this role lacks a right that every process but a gateway needs.
_NOT_WRITTEN = text(
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
    " AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')"
    "  AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')) ORDER BY relname"
)


class Rights(NamedTuple):
    """What is wrong with a role, in words; nothing where it has the rights of its process and no other."""

    lacking: list[str]
    beyond: list[str]
    by_nature: list[str]

    @property
    def are_right(self) -> bool:
        return not any(self)

    def __str__(self) -> str:
        """Behind the role's name."""
        if self.by_nature:
            return " and ".join(self.by_nature)
        parts = [("may ", self.beyond), ("lacks ", self.lacking)]
        return " and ".join(word + _some(names) for word, names in parts if names)


class Writes(NamedTuple):
    """What a process writes: the tables it adds to, the columns it changes, the tables it deletes from."""

    inserted: set[Table]
    updated: set[Column[object]]
    deleted: set[Table]


def writes_of(process: Role) -> Writes:
    """What a worker, the API or a gateway writes."""
    if process is Role.GATEWAY:
        return Writes(_inserted_by_gateways(), _updated_by_gateways(), set())
    every = set(METADATA.sorted_tables)
    kept = {table_of(row) for row in _KEPT_BY_API} if process is Role.API else set[Table]()
    return Writes(every, {column for table in every - kept for column in table.columns}, every - kept)


def _inserted_by_gateways() -> set[Table]:
    """Of authority those tables alone whose rows count with a gateway's signature."""
    signed = {table for table, model in ALL.items() if model in GATEWAY_MAY_WRITE}
    return {table_of(row) for row in (*signed, *_ADDED, *_COUNTED)}


def _updated_by_gateways() -> set[Column[object]]:
    whole = {column for row in _COUNTED for column in table_of(row).columns}
    return whole | {table_of(row).columns[name] for row, names in _CHANGED.items() for name in names}


def grants(role: str, process: Role, schema_name: str = "public") -> list[str]:
    """The statements that give this role what the process needs, and take the rest from it."""
    to, tables, writes = _quoted(role), METADATA.sorted_tables, writes_of(process)

    def named(chosen: set[Table]) -> str:
        return ", ".join(_quoted(table.name) for table in tables if table in chosen)

    whole = {table for table in tables if set(table.columns) <= writes.updated}
    columns: defaultdict[Table, list[str]] = defaultdict(list)
    for column in sorted(writes.updated, key=lambda column: column.name):
        if column.table not in whole:
            columns[column.table].append(_quoted(column.name))
    numbered = [
        f"{table.name}_{at.name}_seq"
        for table in tables
        if table in writes.inserted and (at := table.autoincrement_column) is not None
    ]
    return [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {_quoted(schema_name)} FROM {to}",
        f"GRANT USAGE ON SCHEMA {_quoted(schema_name)} TO {to}",
        f"GRANT SELECT ON {named(set(tables))}, alembic_version TO {to}",
        f"GRANT INSERT ON {named(writes.inserted)} TO {to}",
        *(f"GRANT USAGE ON SEQUENCE {_quoted(sequence)} TO {to}" for sequence in numbered),
        f"GRANT UPDATE ON {named(whole)} TO {to}",
        *(
            f"GRANT UPDATE ({', '.join(columns[table])}) ON {_quoted(table.name)} TO {to}"
            for table in columns
        ),
        *([f"GRANT DELETE ON {named(writes.deleted)} TO {to}"] if writes.deleted else []),
    ]


async def put_role(url: str, process: Role, role: str, password: str | None = None) -> None:
    """Give the role what the process needs, alone. With a password it is made, or gets that one.

    A newer release's schema has tables that this code doesn't know: only that release gives rights there.

    Raises Failure SCHEMA_MISMATCH, STORE_UNAVAILABLE, NOT_FOUND for a role that isn't there,
    NOT_PERMITTED for one that may do more by what it is or belongs to.
    """
    database = open_database(url, limits=False)
    try:
        with translate_errors():
            async with database.write() as connection:
                await connection.run_sync(_put, process, role, password)
    finally:
        await database.close()


async def rights_of_user(url: str, process: Role) -> tuple[str, Rights]:
    """The role as which this URL connects, and what is wrong with its rights."""
    database = open_database(url)
    try:
        with translate_errors():
            async with database.read() as connection:
                return await connection.run_sync(_rights_of_user, process)
    finally:
        await database.close()


async def tables_not_written(url: str) -> tuple[str, list[str]]:
    """The role as which this URL connects, and the tables that it may not read, fill, change and empty."""
    database = open_database(url)
    try:
        with translate_errors():
            async with database.read() as connection:
                rows = (await connection.execute(_NOT_WRITTEN)).all()
                role = (await connection.execute(text("SELECT current_user"))).scalar_one()
                return role, [name for (name,) in rows]
    finally:
        await database.close()


def _put(connection: Connection, process: Role, role: str, password: str | None) -> None:
    schema.require_own_version(connection)
    exists = connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).first()
    quoted = _quoted(role)
    if password is not None:
        made = "ALTER" if exists else "CREATE"
        _run(connection, f"{made} ROLE {quoted} LOGIN PASSWORD '{scram_verifier(password)}'")
    elif exists is None:
        repair = f"As an administrator of PostgreSQL: CREATE ROLE {quoted} LOGIN PASSWORD '…'"
        raise Failure(ErrorCode.NOT_FOUND, f"PostgreSQL has no role {role}.", repair=repair)
    here, name = connection.execute(text("SELECT current_schema(), current_database()")).one()
    _run(connection, f"GRANT CONNECT ON DATABASE {_quoted(name)} TO {quoted}")
    for statement in grants(role, process, here):
        _run(connection, statement)
    rights = _rights(connection, process, role)
    if not rights.are_right:
        repair = (
            "Name a role that is no superuser, makes no roles, and owns no tables, also not as a member. "
            f"Before PostgreSQL 15 every role makes tables: REVOKE CREATE ON SCHEMA {here} FROM PUBLIC"
        )
        raise Failure(ErrorCode.NOT_PERMITTED, f"The role {role} {rights}.", repair=repair)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


def _rights_of_user(connection: Connection, process: Role) -> tuple[str, Rights]:
    role = connection.execute(text("SELECT current_user")).scalar_one()
    return role, _rights(connection, process, role)


def _rights(connection: Connection, process: Role, role: str) -> Rights:
    """Compare what the role may do with what the process needs, for each column of each table. In a newer
    release's schema that release decides about the columns that this code doesn't know."""
    writes = writes_of(process)
    new, gone = ({table.name for table in tables} for tables in (writes.inserted, writes.deleted))
    changed = {(column.table.name, column.name) for column in writes.updated}
    lacking: set[str] = set()
    beyond: set[str] = set()
    nature = connection.execute(_BY_NATURE, {"role": role}).mappings().one()
    known = {(column.table.name, column.name) for table in METADATA.sorted_tables for column in table.columns}
    is_newer = schema.has_newer_schema(connection)
    for row in connection.execute(_RIGHTS, {"role": role}).mappings():
        table, column = row["relname"], row["attname"]
        if is_newer and (table, column) not in known:
            continue
        needs = {
            "SELECT": True,
            "INSERT": table in new,
            "UPDATE": (table, column) in changed,
            "DELETE": table in gone,
        }
        for right, needed in needs.items():
            if needed and not row[right]:
                lacking.add(f"{right} on {table}")
            elif row[right] and not needed:
                beyond.add(f"{right} {table}" + (f".{column}" if right != "DELETE" else ""))
        beyond |= {f"{right} {table}" for right in _FORBIDDEN if row[right]}
    return Rights(sorted(lacking), sorted(beyond), [name for name, holds in nature.items() if holds])


def _run(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL keeps of a password (RFC 5802 section 3): its log may quote the statement."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    keys = (stored, hmac.digest(salted, b"Server Key", "sha256"))
    text_of = [base64.b64encode(part).decode() for part in (salt, *keys)]
    return f"SCRAM-SHA-256${_ROUNDS}:{text_of[0]}${text_of[1]}:{text_of[2]}"
