"""Every sealed column of the schema is declared, documented, and sealed anew by a rotation."""

import re
from pathlib import Path

from evergrant_server.core.key_rotation import RotationKind
from evergrant_server.crypto import KeyPurpose, key_id_of
from evergrant_server.store import NO_CONNECTION, Store
from evergrant_server.store.database.columns import (
    METADATA,
    SealedBytes,
    sealed_columns,
)
from evergrant_server.store.keys import sealed_place
from evergrant_server.store.rotation.resealing import purposes_of_connections
from tests.conformance.store.keys.sealed_rows import add_row, opened, stored
from tests.fakes.key_rotations import a_rotation, current_id, key_rows, rotated

STORAGE_PAGE = Path(__file__).parents[4] / "docs" / "reference" / "storage.md"


async def test_every_sealed_column_of_the_schema_is_sealed_anew(store: Store):
    """The tables are those of the schema: a new sealed column is among them, or this fails."""
    undeclared = {
        f"{table.name}.{column.name}"
        for table in METADATA.tables.values()
        for column in table.c
        if isinstance(column.type, SealedBytes) and column.name not in sealed_columns().get(table, {})
    }
    assert undeclared == {"key.sealed_key"}, "a key is wrapped by the key above it, and nothing else may be"
    rows = [
        (table, by, [await add_row(store, table, by) for _ in range(3)])
        for table, by in sealed_columns().items()
    ]
    before = {row["id"] for row in await key_rows(store)}
    progress = await rotated(store, a_rotation(RotationKind.TENANT))
    purposes = {declared.purpose for columns in sealed_columns().values() for declared in columns.values()}
    assert progress.destroyed == len(purposes)
    await rotated(store, a_rotation(RotationKind.CONNECTION))
    after = await key_rows(store)
    assert not before & {row["id"] for row in after}
    assert all(row["retired_at"] is None for row in after)
    for table, by, added in rows:
        for row in added:
            now = await stored(store, table, row)
            for name, declared in by.items():
                owner = NO_CONNECTION if declared.connection is None else row[declared.connection]
                assert await opened(store, table, name, declared, now) == f"secret of {name}"
                assert now["revision"] == row["revision"], "no writer's compare-and-set fails for it"
                place = sealed_place(table, name, now)
                assert key_id_of(now[name], place) == await current_id(store, declared.purpose, owner)


def test_the_page_of_storage_says_whose_key_each_column_has():
    declared = {
        (table.name, name): by.purpose.value
        for table, columns in sealed_columns().items()
        for name, by in columns.items()
    }
    written: dict[tuple[str, str], str] = {}
    for line in STORAGE_PAGE.read_text().splitlines():
        cells = line.split("|")
        if len(cells) != 5 or not (name := re.fullmatch(r" `(\w+)` ", cells[1])):
            continue
        for columns, purpose in re.findall(r"((?:[^()]*?`sealed_\w+`)+)[^()`]*\((?:all )?(\w+)\)", cells[3]):
            written |= {(name[1], column): purpose for column in re.findall(r"`(sealed_\w+)`", columns)}
    assert written == declared


def test_the_purposes_in_which_connections_have_keys():
    assert purposes_of_connections() == (KeyPurpose.LEASE, KeyPurpose.REFRESH)
