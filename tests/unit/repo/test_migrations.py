"""A migration leaves code of the release before at work: it only adds, or says which code it ends.

`oldest_code` in a migration that takes something away is the version of the oldest code that doesn't use it.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa

from evergrant_server.store.database import schema
from tests.upgrade.trees import PROMISED_SINCE

_AT_A_TABLE = {"create_index", "create_foreign_key", "create_check_constraint", "create_unique_constraint"}


class Operations:
    """Takes the place of Alembic's `op`, and keeps what a migration did."""

    def __init__(self) -> None:
        self.done: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: self.done.append((name, arguments, named))


def breaks(operations: Operations) -> list[str]:
    """What of it stops code of the release before, or its writers."""
    found, made = list[str](), set[str]()
    for name, arguments, _ in operations.done:
        table = arguments[1] if name in _AT_A_TABLE else arguments[0]
        if name == "create_table":
            made.add(table)
        elif name == "add_column":
            column: sa.Column[Any] = arguments[1]
            if not column.nullable and column.server_default is None:
                found.append(f"{table}.{column.name} has no default for rows of older code")
            if column.foreign_keys or column.unique or column.index:
                found.append(f"{table}.{column.name} is bound or indexed: the table's writers wait for that")
        elif name in _AT_A_TABLE and table in made:
            continue
        else:
            found.append(f"{name} {table}")
    return found


def done_by(module: ModuleType) -> Operations:
    operations = Operations()
    module.__dict__["op"] = operations
    module.upgrade()
    return operations


def modules() -> list[ModuleType]:
    files = sorted((schema.MIGRATIONS / "versions").glob("[0-9]*.py"))
    return [loaded(file) for file in files if file.name[:4] >= PROMISED_SINCE]


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"migration_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_migration_expands_or_says_which_code_it_ends():
    for module in modules():
        revision, oldest = module.revision, getattr(module, "oldest_code", None)
        broken = breaks(done_by(module))
        assert not broken or oldest, f"{revision}: {broken}"
        assert oldest is None or schema.known_versions() >= {oldest}, f"{revision}: no version {oldest}"
        assert oldest is None or oldest < revision, f"{revision}: its release still uses what it takes away"


def test_the_database_is_told_of_the_newest_of_them():
    said = [getattr(module, "oldest_code", "0018") for module in modules()]
    assert max(said) == schema.OLDEST_CODE


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("drop_column", ("app", "name")),
        ("alter_column", ("app", "name")),
        ("rename_table", ("app", "application")),
        ("execute", ("UPDATE app SET name = 'x'",)),
        ("create_index", ("ix", "app", ["name"])),
        ("add_column", ("app", sa.Column("later", sa.String(), nullable=False))),
        ("add_column", ("app", sa.Column("later", sa.String(), unique=True))),
    ],
)
def test_what_stops_the_release_before_is_noticed(name: str, arguments: tuple[Any, ...]):
    operations = Operations()
    getattr(operations, name)(*arguments)
    assert breaks(operations)
