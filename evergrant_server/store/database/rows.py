"""Reads and writes rows as values of core: the statements that every repository shares."""

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    ColumnElement,
    Executable,
    Insert,
    Label,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.model import CheckedModel
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.sqlite import SqliteConnection

Values = dict[str, Any]
RowPlace = tuple[datetime, str]  # moment and id of the last row that a walk has looked at
Model = TypeVar("Model", bound=CheckedModel)
Id = TypeVar("Id", bound=str)


def column_values(model: BaseModel, **columns: Any) -> Values:
    """The columns of a value of core: enums as their text, everything else as it is."""
    plain = {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in model.model_dump().items()
    }
    return {**plain, **columns}


def read_model(model: type[Model], table: type[Row], row: Values) -> Model:
    """The row as a value of core.

    Raises Failure INTERNAL that names the row and its unreadable fields: a newer version wrote it, or a
    hand. No value of the row is quoted.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        fields = (
            ", ".join(sorted({str(problem["loc"][0]) for problem in errors if problem["loc"]}))
            or "its fields together"
        )
        name = row.get("id") or row.get("connection_id") or f"tenant {row.get('tenant')}"
        table_name = table_of(table).name
    detail = f"the row of {name} in {table_name} can't be read: {fields}"
    raise Failure(ErrorCode.INTERNAL, detail, error="ValidationError", table=table_name)


async def insert(connection: DatabaseConnection, table: type[Row], values: Values) -> bool:
    """Add a row. False when one of the table's unique indexes already has it."""
    statement = _insert_statement(table_of(table), connection.dialect.name)
    return await change(connection, statement, values) == 1


async def insert_all(connection: DatabaseConnection, table: type[Row], rows: Sequence[Values]) -> None:
    """Add rows in one statement. Raises Failure STORE_CONFLICT, at the end of the transaction's block, when
    one of the table's unique indexes already has one of them."""
    await connection.execute(_plain_insert(table_of(table)), rows)


def columns_equal(table: type[Row], **equal: Any) -> ColumnElement[bool]:
    """All of the named columns equal these values."""
    return and_(true(), *(col(getattr(table, name)) == value for name, value in equal.items()))


async def find_one(connection: DatabaseConnection, table: type[Row], **equal: Any) -> Values | None:
    """The one row with these columns, or None."""
    values = {name: value for name, value in equal.items() if value is not None}
    statement = _select_statement(
        table_of(table), tuple(values), tuple(name for name in equal if name not in values)
    )
    return await fetch_first(connection, statement, values)


@cache
def _labels(table: Table) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, f"{table.name}.{column.name}") for column in table.c)


def labelled(*tables: Table) -> list[Label[Any]]:
    """Every column of several tables, for one row that `part` takes apart."""
    return [table.c[name].label(label) for table in tables for name, label in _labels(table)]


def part(row: Values, table: Table) -> Values | None:
    """The columns of this table in a row of `labelled` ones; None: an outer join found no row of it."""
    values = {name: row[label] for name, label in _labels(table)}
    return None if values["tenant"] is None else values


async def fetch_first(
    connection: DatabaseConnection, query: Executable, parameters: Values | None = None
) -> Values | None:
    """The query's first row by its column names, or None."""
    rows = await fetch_all(connection, query, parameters)
    return rows[0] if rows else None


async def fetch_all(
    connection: DatabaseConnection, query: Executable, parameters: Values | None = None
) -> list[Values]:
    """The query's rows by their column names."""
    if parameters is not None and isinstance(connection, SqliteConnection):
        planned = connection.planned(query, parameters)
        if planned is not None:
            plan, cursor = planned
            return plan.rows(cursor)
    rows = (await connection.execute(query, parameters)).mappings()
    return [{str(name): value for name, value in row.items()} for row in rows]


async def change(connection: DatabaseConnection, statement: Executable, parameters: Values) -> int:
    """Run a change of rows that is built once; returns how many it changed."""
    if isinstance(connection, SqliteConnection):
        planned = connection.planned(statement, parameters)
        if planned is not None:
            return planned[1].rowcount
    return (await connection.execute(statement, parameters)).rowcount


async def compare_and_set(
    connection: DatabaseConnection, table: type[Row], key: Values, values: Values, expected: int
) -> int:
    """Change the row only if its revision is `expected`; returns the new revision.

    Raises Failure STORE_CONFLICT when it changed meanwhile, NOT_FOUND when it is gone.
    """
    changed = {**{n: v for n, v in values.items() if n not in key}, "revision": expected + 1}
    read = {f"read_{name}": value for name, value in (*key.items(), ("revision", expected))}
    statement = _update_statement(table_of(table), tuple(key), tuple(changed))
    if await change(connection, statement, {**changed, **read}) != 1:
        await _explain_conflict(connection, table, key, expected)
    return expected + 1


# Building a statement takes longer than running it: those that every repository sends are built once.


@cache
def _insert_statement(table: Table, dialect: str) -> Insert:
    """Does nothing when a unique index already has the row; both databases know it."""
    insert_into = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert_into(table).on_conflict_do_nothing()


@cache
def _plain_insert(table: Table) -> Insert:
    return table.insert()


@cache
def _select_statement(table: Table, names: tuple[str, ...], nulls: tuple[str, ...]) -> Executable:
    equal = (table.c[name] == bindparam(name) for name in names)
    return select(table).where(*equal, *(table.c[name].is_(None) for name in nulls))


@cache
def _update_statement(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Update:
    same = (table.c[name] == bindparam(f"read_{name}") for name in (*key, "revision"))
    return update(table).where(*same).values({name: bindparam(name) for name in names})


async def _explain_conflict(
    connection: DatabaseConnection, table: type[Row], key: Values, expected: int
) -> NoReturn:
    name = str(key.get("id", "the row"))
    row = await connection.execute(select(exists().where(columns_equal(table, **key))))
    if row.scalar_one():
        raise Failure(ErrorCode.STORE_CONFLICT, f"{name} is no longer at revision {expected}.", row=name)
    raise Failure(ErrorCode.NOT_FOUND, f"{name} doesn't exist.", row=name)


_UNDER_WAY = text(
    "SELECT DISTINCT l.virtualtransaction FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
    " WHERE l.locktype = 'relation' AND l.pid <> pg_backend_pid() AND c.relname = ANY(:tables)"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND c.relnamespace = current_schema()::regnamespace"
    " AND l.mode IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')"
)


async def transactions_under_way(connection: DatabaseConnection, tables: Sequence[str]) -> frozenset[str]:
    """The transactions that may have read what stands in these tables now.

    Empty for SQLite: a reader has its own snapshot to its end, and writers come one after another.
    """
    if connection.dialect.name != "postgresql":
        return frozenset()
    rows = await connection.execute(_UNDER_WAY, {"tables": list(tables)})
    return frozenset(rows.scalars())


_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended(:turns, 0))")
_BESIDE = text("SELECT pg_advisory_xact_lock_shared(hashtextextended(:turns, 0))")


async def take_turns(connection: DatabaseConnection, turns: str, *, shared: bool = False) -> None:
    """Wait for the transactions that have taken these turns, and have later ones wait for this one; those
    that share them go on beside each other.

    For who looks for a row that isn't there, and who adds it: else neither sees the other's. SQLite has one
    writer.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(_BESIDE if shared else _ALONE, {"turns": turns})


def not_found(name: str) -> Failure:
    return Failure(ErrorCode.NOT_FOUND, f"{name} doesn't exist.")


def already_exists(name: str) -> Failure:
    return Failure(ErrorCode.ALREADY_EXISTS, f"{name} exists already.")


class Repository:
    """The rows of one feature, within one transaction."""

    def __init__(self, connection: DatabaseConnection) -> None:
        self._connection = connection

    async def _run(self, statement: Executable) -> int:
        """Run a change of rows; returns how many it changed."""
        return (await self._connection.execute(statement)).rowcount


class ModelRepository(Repository, Generic[Model, Id]):
    """The rows of one table as values of core."""

    _table: type[Row]
    _model: type[Model]

    async def get(self, tenant: Tenant, id: Id) -> Model | None:
        return await self._one(tenant=tenant, id=id)

    async def replace(self, model: Model, /, *, expected: int) -> Model:
        """Write it if its row is still at revision `expected`; returns it with the next one.

        Raises Failure STORE_CONFLICT when the row changed meanwhile, NOT_FOUND when it is gone.
        """
        return await self._change(model, expected)

    async def _insert(self, model: Model, **columns: Any) -> bool:
        """Add its row, with more columns; False when one of the table's unique indexes already has it."""
        return await insert(self._connection, self._table, column_values(model, **columns))

    async def _add(self, model: Model, name: str, **columns: Any) -> Model:
        """Add its row, with more columns. Raises Failure ALREADY_EXISTS that says `what`."""
        if not await self._insert(model, **columns):
            raise already_exists(name)
        return model

    async def _change(self, model: Model, expected: int, **columns: Any) -> Model:
        """As `replace`, with more columns."""
        return await self._write(model, column_values(model, **columns), expected)

    async def _change_only(
        self, model: Model, names: Collection[str], expected: int, **columns: Any
    ) -> Model:
        """As `_change`, of the columns `names`: for what a gateway's role of PostgreSQL may change."""
        values = column_values(model)
        return await self._write(model, {**{name: values[name] for name in names}, **columns}, expected)

    async def _write(self, model: Model, values: Values, expected: int) -> Model:
        key = model.model_dump(include={"tenant", "id"})
        revision = await compare_and_set(self._connection, self._table, key, values, expected)
        written: dict[str, Any] = {"revision": revision}  # a field of every model that is a row
        return model.__replace__(**written)

    async def _put(self, model: Model, name: str, expected: int | None, **columns: Any) -> Model:
        """Add (`expected` None) or change it. Raises as `_add` and `replace`."""
        if expected is None:
            return await self._add(model, name, **columns)
        return await self._change(model, expected, **columns)

    async def _put_for(self, before: Model | None, model: Model) -> Model:
        """Add its row in place of the one that was read as `before`, if one was.

        Raises Failure STORE_CONFLICT when another change came first.
        """
        if before is not None:
            await self._delete_read(before)
        if not await self._insert(model):
            raise Failure(ErrorCode.STORE_CONFLICT, "Another one was put at the same moment.")
        return model

    async def _delete_read(self, model: Model) -> None:
        """Delete the row that was read so. Raises Failure STORE_CONFLICT when it changed since or is gone."""
        read = columns_equal(self._table, **model.model_dump(include={"tenant", "id", "revision"}))
        if await self._run(delete(self._table).where(read)) != 1:
            raise Failure(ErrorCode.STORE_CONFLICT, "It was changed or deleted at the same moment.")

    async def _one(self, **equal: Any) -> Model | None:
        """The one row with these columns, or None."""
        row = await find_one(self._connection, self._table, **equal)
        return None if row is None else read_model(self._model, self._table, row)

    def _where(self, *conditions: ColumnElement[bool], **equal: Any) -> Select[Any]:
        """Rows for which all of this holds."""
        return select(self._table).where(columns_equal(self._table, **equal), *conditions)

    async def _all(self, query: Executable, parameters: Values | None = None) -> list[Model]:
        rows = await fetch_all(self._connection, query, parameters)
        return [read_model(self._model, self._table, row) for row in rows]

    async def _first(self, query: Select[Any]) -> Model | None:
        models = await self._all(query.limit(1))
        return models[0] if models else None

    async def _page(self, query: Select[Any], by: str, after: str | None, limit: int) -> list[Model]:
        """The query's rows sorted by the column `by`, after the value `after`."""
        column = col(getattr(self._table, by))
        if after is not None:
            query = query.where(column > after)
        return await self._all(query.order_by(column).limit(limit))

    async def _delete(self, label: str, **equal: Any) -> None:
        """Delete the one row with these columns. Raises Failure NOT_FOUND that says `what`."""
        if await self._run(delete(self._table).where(columns_equal(self._table, **equal))) != 1:
            raise not_found(label)
