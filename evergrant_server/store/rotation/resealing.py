"""Seals values anew with another key, in whichever column the schema declares (`columns.SealedBy`)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    LargeBinary,
    Select,
    Table,
    bindparam,
    false,
    func,
    or_,
    select,
    type_coerce,
    update,
)

from evergrant_server.core.errors import Failure
from evergrant_server.crypto import KeyPurpose, SealingKey, key_id_of, open_sealed, seal
from evergrant_server.crypto.envelope import seal_head
from evergrant_server.store.database.columns import SealedBy, sealed_columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, transactions_under_way
from evergrant_server.store.keys import sealed_place


class Moved(NamedTuple):
    """A page that was moved. `after` is where the next one begins; None: it was the last."""

    rows: int = 0
    after: tuple[str, ...] | None = None
    skipped: int = 0  # another transaction held them
    broken: tuple[Failure, ...] = ()  # each names a value that no key opens


class Pair(NamedTuple):
    """A key, and the one that takes its place."""

    old: SealingKey
    new: SealingKey


def columns_of(purpose: KeyPurpose, *, of_connections: bool) -> dict[Table, dict[str, SealedBy]]:
    """The columns that a tenant's own key of this purpose seals, or the keys of its connections."""
    chosen = {
        table: {
            name: by
            for name, by in columns.items()
            if by.purpose is purpose and (by.connection is not None) is of_connections
        }
        for table, columns in sealed_columns().items()
    }
    return {table: columns for table, columns in chosen.items() if columns}


def purposes_of_connections() -> tuple[KeyPurpose, ...]:
    """The purposes in which keys of connections seal columns. What a key of another one seals isn't here: it
    is wrapped anew with its tenant's, and never replaced."""
    return tuple(purpose for purpose in KeyPurpose if columns_of(purpose, of_connections=True))


def name_of(table: Table) -> list[Column[Any]]:
    """The columns that name a row within its tenant."""
    return [column for column in table.primary_key if column.name != "tenant"]


def sealed_rows(table: Table, columns: Mapping[str, SealedBy]) -> Select[Any]:
    """Rows with what `reseal` needs of them."""
    placed = chain.from_iterable((*by.row, by.generation) for by in columns.values())
    names = dict.fromkeys([*(column.name for column in table.primary_key), *placed, *columns])
    return select(*(table.c[name] for name in names if name is not None))


def sealed_by(column: Column[Any], key_ids: Collection[str]) -> ColumnElement[bool]:
    """One of these keys has sealed the value."""
    begins = list[ColumnElement[bool]]()
    for head in map(seal_head, sorted(key_ids)):
        start = func.substr(type_coerce(column, LargeBinary), 1, len(head), type_=LargeBinary)
        begins.append(start == bindparam(None, head, type_=LargeBinary))
    return or_(false(), *begins)


def opened(row: Values, table: Table, column: str, pairs: Mapping[str, Pair]) -> tuple[Pair, bytes] | None:
    """The value of this column, with the keys of the pair whose first has sealed it; None: none of them has.

    Raises Failure SEAL_BROKEN.
    """
    sealed, place = row[column], sealed_place(table, column, row)
    if sealed is None:
        return None
    pair = pairs.get(key_id_of(sealed, place))
    return None if pair is None else (pair, open_sealed(pair.old, place, sealed))


async def reseal(
    connection: DatabaseConnection,
    table: Table,
    columns: Iterable[str],
    rows: Sequence[Values],
    pairs: Mapping[str, Pair],
) -> Moved:
    """Seal the values of these rows with the new key of the pair whose old one has sealed them.

    By compare-and-set on the bytes: a value that changes meanwhile stays its writer's. One that can't be
    opened stays as it is: no key opens it.
    """
    moved, broken = set[int](), list[Failure]()
    for column in columns:
        changes: list[Values] = []
        for number, row in enumerate(rows):
            try:
                value = opened(row, table, column, pairs)
            except Failure as failure:
                broken.append(failure)
                continue
            if value is not None:
                named = {f"at_{part.name}": row[part.name] for part in table.primary_key}
                again = seal(value[0].new, sealed_place(table, column, row), value[1])
                changes.append({**named, "old_value": row[column], "new_value": again})
                moved.add(number)
        if changes:
            same = [part == bindparam(f"at_{part.name}") for part in table.primary_key]
            statement = update(table).where(*same, table.c[column] == bindparam("old_value"))
            await connection.execute(statement.values({column: bindparam("new_value")}), changes)
    return Moved(len(moved), broken=tuple(broken))


async def under_way(connection: DatabaseConnection) -> frozenset[str]:
    """The transactions that may have read what stands in the sealed tables now."""
    return await transactions_under_way(connection, ["key", *(table.name for table in sealed_columns())])
