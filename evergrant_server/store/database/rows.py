"""Reads and writes rows as values of core: the statements that every repository shares."""

from enum import StrEnum
from functools import cache
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel
from sqlalchemy import (
    ColumnElement,
    Executable,
    Insert,
    Table,
    Update,
    and_,
    bindparam,
    exists,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.connection import DatabaseConnection

Values = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


def column_values(model: BaseModel, **more: Any) -> Values:
    """The columns of a value of core: enums as their text, everything else as it is."""
    plain = {name: it.value if isinstance(it, StrEnum) else it for name, it in model.model_dump().items()}
    return {**plain, **more}


async def insert(connection: DatabaseConnection, table: type[Row], values: Values) -> bool:
    """Add a row. False when one of the table's unique indexes already has it."""
    statement = _insert_statement(table_of(table), connection.dialect.name)
    return (await connection.execute(statement, values)).rowcount == 1


def columns_equal(table: type[Row], **equal: Any) -> ColumnElement[bool]:
    """All of the named columns equal these values."""
    return and_(*(col(getattr(table, name)) == value for name, value in equal.items()))


async def find_one(connection: DatabaseConnection, table: type[Row], **equal: Any) -> Values | None:
    """The one row with these columns, or None."""
    given = {name: value for name, value in equal.items() if value is not None}
    statement = _select_statement(
        table_of(table), tuple(given), tuple(name for name in equal if name not in given)
    )
    return await fetch_first(connection, statement, given)


async def fetch_first(
    connection: DatabaseConnection, query: Executable, parameters: Values | None = None
) -> Values | None:
    """The query's first row by its column names, or None."""
    row = (await connection.execute(query, parameters)).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


async def fetch_all(connection: DatabaseConnection, query: Executable) -> list[Values]:
    """The query's rows by their column names."""
    rows = (await connection.execute(query)).mappings()
    return [{str(name): value for name, value in row.items()} for row in rows]


async def find_model(
    connection: DatabaseConnection, model: type[Model], table: type[Row], **equal: Any
) -> Model | None:
    """The one row with these columns as a value of core, or None."""
    row = await find_one(connection, table, **equal)
    return None if row is None else model.model_validate(row)


async def fetch_model(connection: DatabaseConnection, model: type[Model], query: Executable) -> Model | None:
    """The query's first row as a value of core, or None."""
    row = await fetch_first(connection, query)
    return None if row is None else model.model_validate(row)


async def fetch_models(connection: DatabaseConnection, model: type[Model], query: Executable) -> list[Model]:
    """The query's rows as values of core."""
    return [model.model_validate(row) for row in await fetch_all(connection, query)]


async def compare_and_set(
    connection: DatabaseConnection, table: type[Row], key: Values, values: Values, expected: int
) -> int:
    """Change the row only if its revision is `expected`; returns the new revision.

    Raises Failure STORE_CONFLICT when it changed meanwhile, NOT_FOUND when it is gone.
    """
    changed = {**{n: v for n, v in values.items() if n not in key}, "revision": expected + 1}
    read = {f"read_{name}": value for name, value in (*key.items(), ("revision", expected))}
    statement = _update_statement(table_of(table), tuple(key), tuple(changed))
    if (await connection.execute(statement, {**changed, **read})).rowcount != 1:
        await _explain_conflict(connection, table, key, expected)
    return expected + 1


# Building a statement takes longer than running it: those that every repository sends are built once.


@cache
def _insert_statement(table: Table, dialect: str) -> Insert:
    """Does nothing when a unique index already has the row; both databases know it."""
    insert_into = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert_into(table).on_conflict_do_nothing()


@cache
def _select_statement(table: Table, names: tuple[str, ...], nulls: tuple[str, ...]) -> Executable:
    given = (table.c[name] == bindparam(name) for name in names)
    return select(table).where(*given, *(table.c[name].is_(None) for name in nulls))


@cache
def _update_statement(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Update:
    same = (table.c[name] == bindparam(f"read_{name}") for name in (*key, "revision"))
    return update(table).where(*same).values({name: bindparam(name) for name in names})


async def _explain_conflict(
    connection: DatabaseConnection, table: type[Row], key: Values, expected: int
) -> NoReturn:
    name = str(key.get("id", "the row"))
    there = await connection.execute(select(exists().where(columns_equal(table, **key))))
    if there.scalar_one():
        raise Failure(ErrorCode.STORE_CONFLICT, f"{name} is no longer at revision {expected}.", row=name)
    raise Failure(ErrorCode.NOT_FOUND, f"{name} doesn't exist.", row=name)


def already_exists(what: str) -> Failure:
    return Failure(ErrorCode.ALREADY_EXISTS, f"{what} exists already.")


class Repository:
    """The rows of one feature, within one transaction."""

    def __init__(self, connection: DatabaseConnection) -> None:
        self._connection = connection
