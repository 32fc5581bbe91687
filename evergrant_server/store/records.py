"""Between values of core and rows: the few statements every repository is made of."""

from enum import StrEnum
from typing import Any, NoReturn

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Executable, Insert, and_, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.tables import Row

Values = dict[str, Any]


def column_values(model: BaseModel, **more: Any) -> Values:
    """The columns of a value of core: enums as their text, everything else as it is."""
    plain = {name: it.value if isinstance(it, StrEnum) else it for name, it in model.model_dump().items()}
    return {**plain, **more}


def insert_or_ignore(connection: AsyncConnection, table: type[Row]) -> Insert:
    """An INSERT that does nothing when a unique index already has the row (both databases know it)."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


async def insert(connection: AsyncConnection, table: type[Row], values: Values) -> bool:
    """Add a row. False when one of the table's unique indexes already has it."""
    return (await connection.execute(insert_or_ignore(connection, table).values(values))).rowcount == 1


def columns_equal(table: type[Row], **equal: Any) -> ColumnElement[bool]:
    """All of the named columns equal these values."""
    return and_(*(col(getattr(table, name)) == value for name, value in equal.items()))


async def find_one(connection: AsyncConnection, table: type[Row], **equal: Any) -> Values | None:
    """The one row with these columns, or None."""
    return await fetch_first(connection, select(table).where(columns_equal(table, **equal)))


async def fetch_first(connection: AsyncConnection, query: Executable) -> Values | None:
    """The query's first row by its column names, or None."""
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


async def fetch_all(connection: AsyncConnection, query: Executable) -> list[Values]:
    """The query's rows by their column names."""
    rows = (await connection.execute(query)).mappings()
    return [{str(name): value for name, value in row.items()} for row in rows]


async def compare_and_set(
    connection: AsyncConnection, table: type[Row], key: Values, values: Values, expected: int
) -> int:
    """Change the row only if its revision is `expected`; returns the new revision.

    Raises Failure STORE_CONFLICT when it changed meanwhile, NOT_FOUND when it is gone.
    """
    changed = {**{n: v for n, v in values.items() if n not in key}, "revision": expected + 1}
    statement = update(table).where(columns_equal(table, **key, revision=expected)).values(changed)
    if (await connection.execute(statement)).rowcount != 1:
        await _explain_conflict(connection, table, key, expected)
    return expected + 1


async def _explain_conflict(
    connection: AsyncConnection, table: type[Row], key: Values, expected: int
) -> NoReturn:
    name = str(key.get("id", "the row"))
    there = await connection.execute(select(exists().where(columns_equal(table, **key))))
    if there.scalar_one():
        raise Failure(ErrorCode.STORE_CONFLICT, f"{name} is no longer at revision {expected}.", row=name)
    raise Failure(ErrorCode.NOT_FOUND, f"{name} doesn't exist.", row=name)


def already_exists(what: str) -> Failure:
    return Failure(ErrorCode.ALREADY_EXISTS, f"{what} exists already.")
