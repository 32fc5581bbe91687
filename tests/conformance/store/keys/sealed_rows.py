"""A row of any table of the schema that has sealed columns."""

import itertools
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Integer, LargeBinary, Table, select

from evergrant_server.core.secret import Secret
from evergrant_server.store import NO_CONNECTION, Store
from evergrant_server.store.database.columns import (
    SealedBy,
    SealedBytes,
    UtcDateTime,
)
from evergrant_server.store.keys import sealed_place
from tests.conformance.store.samples import ACME
from tests.fakes.databases import NOW

_numbers = itertools.count(1)


def _value(column: Column[Any]) -> Any:
    if column.nullable:
        return None
    match column.type:
        case UtcDateTime():
            return NOW
        case JSON():
            return {}
        case Boolean():
            return False
        case Integer():
            return 1
        case LargeBinary():
            return b"bytes"
        case _:
            return f"{column.name}-{next(_numbers)}"


async def add_row(store: Store, table: Table, by: Mapping[str, SealedBy], **known: Any) -> dict[str, Any]:
    """A row of any table of the schema, with its parents. Each sealed column has the text of its name."""
    values = {column.name: _value(column) for column in table.c if not isinstance(column.type, SealedBytes)}
    values |= {"tenant": ACME, **known}
    for constraint in table.foreign_key_constraints:
        parent = await add_row(store, constraint.referred_table, {}, tenant=values["tenant"])
        values |= {part.parent.name: parent[part.column.name] for part in constraint.elements}
    async with store.write() as tx:
        for name, declared in by.items():
            owner = NO_CONNECTION if declared.connection is None else values[declared.connection]
            place = sealed_place(table, name, values)
            values[name] = await tx.sealer.seal(declared.purpose, owner, place, Secret(f"secret of {name}"))
        await tx.connection.execute(table.insert(), values)
    return values


async def opened(store: Store, table: Table, column: str, by: SealedBy, row: Mapping[str, Any]) -> str:
    owner = NO_CONNECTION if by.connection is None else row[by.connection]
    async with store.read() as tx:
        place = sealed_place(table, column, row)
        return (await tx.sealer.open(by.purpose, owner, place, row[column])).reveal()


async def stored(store: Store, table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    key = {part.name: row[part.name] for part in table.primary_key}
    async with store.read() as tx:
        return dict((await tx.connection.execute(select(table).filter_by(**key))).mappings().one())
