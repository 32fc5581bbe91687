"""Opens every sealed column and every key of the installation, again and again, in a process of its own.

`python -m tests.faults.rotation.walk` has the settings of an operator in its environment. It writes a row of
its own in `process`, as a rotation waits for whoever opens keys. It ends with its standard input: after one
more whole walk it writes what it counted as one line of JSON.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Select, Table, literal, select, tuple_

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import AssociatedData, KeyPurpose, key_id_of, open_sealed
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import load_settings
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.columns import sealed_columns, table_of
from evergrant_server.store.database.rows import Values, fetch_all
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, WrappedKey, sealed_place, unwrap
from evergrant_server.store.rotation.resealing import sealed_rows
from evergrant_server.wiring.heartbeat import Heartbeat
from evergrant_server.wiring.platform import open_store

_PAGE_ROWS = 200
_PAUSE_S = 0.02  # between two pages: the walk looks, and is no load
_KEYS = table_of(KeyRow)


@dataclass
class Seen:
    """What the walks have opened: `values` in the last one, and what they couldn't open."""

    walks: int = 0
    keys: int = 0
    values: int = 0
    unreadable: list[str] = field(default_factory=list)

    def __add__(self, later: "Seen") -> "Seen":
        walks, unreadable = self.walks + later.walks, self.unreadable + later.unreadable
        return Seen(walks, later.keys, later.values, unreadable)


async def walked(store: Store, pause_s: float = _PAUSE_S) -> Seen:
    """One walk: each page of rows in one snapshot, with the keys that have sealed them."""
    seen = Seen(walks=1)
    seen.keys = await _pages(store, _KEYS, select(_KEYS), pause_s, seen.unreadable, _opened_keys)
    for table, columns in sealed_columns().items():

        async def opened(tx: Transaction, rows: list[Values], table: Table = table) -> tuple[int, list[str]]:
            return await _opened_values(tx, table, rows)

        query = sealed_rows(table, columns)
        seen.values += await _pages(store, table, query, pause_s, seen.unreadable, opened)
    return seen


async def _pages(
    store: Store, table: Table, query: Select[Any], pause_s: float, unreadable: list[str], opened: Any
) -> int:
    number, behind = 0, tuple[Any, ...]()
    key = list(table.primary_key)
    while True:
        page = query.where(tuple_(*key) > tuple_(*map(literal, behind))) if behind else query
        async with store.read() as tx:
            rows = await fetch_all(tx.connection, page.order_by(*key).limit(_PAGE_ROWS))
            count, broken = await opened(tx, rows)
        number += count
        unreadable += broken
        if len(rows) < _PAGE_ROWS:
            return number
        behind = tuple(rows[-1][column.name] for column in key)
        await asyncio.sleep(pause_s)


async def _opened_keys(tx: Transaction, rows: Sequence[Values]) -> tuple[int, list[str]]:
    """How many keys the keys above them open, and what is wrong with the others."""
    above = await _rows_of(tx, {row["wrapping_key_id"] for row in rows if row["connection_id"]})
    broken: list[str] = []
    for row in rows:
        try:
            unwrap(tx.ring, row["tenant"], KeyPurpose(row["purpose"]), _wrapped(row, above))
        except (Failure, KeyError) as error:
            broken.append(f"key {row['id']} of {row['purpose']}: {error}")
    return len(rows) - len(broken), broken


async def _opened_values(tx: Transaction, table: Table, rows: Sequence[Values]) -> tuple[int, list[str]]:
    columns = sealed_columns()[table]
    sealed = [(row, name) for row in rows for name in columns if row[name] is not None]
    keys = await _rows_of(tx, {_key_id(row[name]) for row, name in sealed})
    above = await _rows_of(tx, {row["wrapping_key_id"] for row in keys.values() if row["connection_id"]})
    broken: list[str] = []
    for row, name in sealed:
        place = sealed_place(table, name, row)
        try:
            key, of = keys[_key_id(row[name])], columns[name].connection
            if key["connection_id"] != (NO_CONNECTION if of is None else row[of]):
                raise KeyError("sealed by another connection's key")
            opened = unwrap(tx.ring, row["tenant"], columns[name].purpose, _wrapped(key, above))
            open_sealed(opened, place, row[name])
        except (Failure, KeyError) as error:
            broken.append(f"{table.name}.{name} of {place.row}: {error}")
    return len(sealed) - len(broken), broken


async def _rows_of(tx: Transaction, ids: set[str]) -> dict[str, Values]:
    rows = await fetch_all(tx.connection, select(_KEYS).where(_KEYS.c.id.in_(sorted(ids))))
    return {row["id"]: row for row in rows}


def _wrapped(row: Values, above: dict[str, Values]) -> WrappedKey:
    tenants = above[row["wrapping_key_id"]] if row["connection_id"] else row
    key = (row["id"], row["connection_id"], row["sealed_key"])
    return WrappedKey(*key, tenants["id"], tenants["sealed_key"])


def _key_id(sealed: Any) -> str:
    """The id of the key that has sealed this; none for what is no sealed value."""
    try:
        return key_id_of(sealed, AssociatedData("", "", "", ""))
    except Failure:
        return ""


async def main() -> Seen:
    seen, over = Seen(), asyncio.Event()
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: over.set())
    clock = SystemClock()
    async with (
        open_store(load_settings(), Role.OPERATOR, clock) as (store, _),
        Heartbeat(store, clock).running(),
    ):
        print("walking", flush=True)
        while not over.is_set():
            seen += await walked(store)
        return seen + await walked(store, pause_s=0)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(main()))), flush=True)
