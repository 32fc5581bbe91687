"""The schema: made from nothing, the same as the models, upgraded, refused when it is another."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from evergrant_server.store.database import schema, sqlite
from evergrant_server.store.database.columns import METADATA
from evergrant_server.store.database.engine import open_database
from tests.conformance.store.samples import an_app
from tests.fakes.clock import SetClock
from tests.fakes.databases import DURABLE, postgres
from tests.fakes.failures import fails
from tests.upgrade.later_release import A_COLUMN, later_release


async def test_upgrades_at_once_bring_an_empty_database_to_head_and_a_later_one_leaves_it_there(
    empty_url: str,
):
    assert await schema.current_version(empty_url) is None
    await asyncio.gather(*(schema.upgrade(empty_url) for _ in range(3)))
    await schema.upgrade(empty_url)
    assert await schema.current_version(empty_url) == schema.expected_version()


def test_the_names_of_the_migrations_are_their_revisions():
    scripts = ScriptDirectory(str(schema.MIGRATIONS))
    assert {it.revision for it in scripts.walk_revisions()} == schema.known_versions()
    assert scripts.get_current_head() == schema.expected_version()


def test_no_migration_can_be_reverted():
    for script in ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions():
        with pytest.raises(RuntimeError):
            script.module.downgrade()


@pytest.fixture
def newer_code(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Makes this code the release after the next: with one more migration, which runs a statement."""
    with ExitStack() as stack:

        def release(statement: str) -> None:
            stack.enter_context(later_release(tmp_path, A_COLUMN, f'op.execute("{statement}")'))

        yield release


async def test_a_database_of_an_older_version_is_refused_until_its_upgrade_which_keeps_the_rows(
    database_url: str, ring: KeyRing, clock: SetClock, newer_code: Callable[[str], None]
):
    before = schema.expected_version()
    store = await Store.open(database_url, ring, clock)
    async with store.write() as tx:
        await tx.access.put_app(an_app(), expected=None)
    await store.close()
    newer_code("UPDATE app SET later = name")
    with fails(ErrorCode.SCHEMA_MISMATCH, f"older schema {before}") as caught:
        await Store.open(database_url, ring, clock)
    assert "db upgrade" in caught.value.repair
    assert await schema.upgrade(database_url) == before
    assert await schema.upgrade(database_url) == "9999"
    store = await Store.open(database_url, ring, clock)
    async with store.read() as tx:
        names = (await tx.connection.execute(text("SELECT later FROM app"))).scalars().all()
    await store.close()
    assert names == [an_app().name]


async def test_a_migration_that_fails_changes_nothing(database_url: str, newer_code: Callable[[str], None]):
    database, version = open_database(database_url), schema.expected_version()
    async with database.read() as connection:
        before = await connection.run_sync(shape_of)
    newer_code("UPDATE nothing SET there = 1")
    with pytest.raises((Failure, DBAPIError)):
        await schema.upgrade(database_url)
    async with database.read() as connection:
        assert await connection.run_sync(shape_of) == before
    await database.close()
    assert await schema.current_version(database_url) == version


def index_of(described: Any) -> dict[str, Any]:
    """An index with its condition as text, so that two descriptions compare."""
    options = {name: str(value) for name, value in described.get("dialect_options", {}).items()}
    return {**described, "dialect_options": options}


def shape_of(connection: Connection) -> dict[str, Any]:
    """Every table as the database itself describes it."""
    inspector = inspect(connection)
    tables: dict[str, Any] = {}
    for name in inspector.get_table_names():
        tables[name] = {
            "columns": {it["name"]: (str(it["type"]), it["nullable"]) for it in inspector.get_columns(name)},
            "primary key": inspector.get_pk_constraint(name),
            "foreign keys": sorted(inspector.get_foreign_keys(name), key=str),
            "unique": sorted(inspector.get_unique_constraints(name), key=str),
            "indexes": sorted((index_of(it) for it in inspector.get_indexes(name)), key=str),
        }
    return tables


async def test_a_migration_of_a_big_table_takes_as_long_as_it_does(database_url: str):
    """Statements of the API and of workers are limited; those that build an index are not."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has no limits of statements")
    for limits, timeout in ((True, "15s"), (False, "0")):
        database = open_database(database_url, limits=limits)
        async with database.write() as session:
            assert (await session.execute(text("SHOW statement_timeout"))).scalar_one() == timeout
        await database.close()


async def test_the_migrated_schema_is_exactly_that_of_the_tables(database_url: str):
    database = open_database(database_url)
    async with database.write() as connection:
        migrated = await connection.run_sync(shape_of)
        await connection.run_sync(METADATA.drop_all)
        await connection.run_sync(METADATA.create_all)
        assert migrated == await connection.run_sync(shape_of)
    await database.close()


async def test_a_database_of_tests_without_its_triggers_is_not_lent_again():
    """Tables that SQLAlchemy has made, as above, have none: leases wouldn't wait for a stop."""
    url = await postgres().lend()
    database = make_url(url).database
    assert database is not None
    await postgres().admin("DROP TRIGGER exclude_leases ON app", database=database)
    await postgres().give_back(url)
    following = await postgres().lend()
    assert following != url
    await postgres().give_back(following)


def test_every_table_starts_with_tenant_and_carries_a_revision():
    assert len(METADATA.tables) > 15
    for table in METADATA.sorted_tables:
        assert table.c[0].name == "tenant", table.name
        assert "revision" in table.c, table.name


async def test_an_empty_database_is_refused(empty_url: str, ring: KeyRing, clock: SetClock):
    with fails(ErrorCode.SCHEMA_MISMATCH) as caught:
        await Store.open(empty_url, ring, clock)
    versions = {"found": "none", "expected": schema.expected_version()}
    assert caught.value.context.items() >= versions.items()
    assert "db upgrade" in caught.value.context["repair"]


async def test_a_new_sqlite_file_is_private_and_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite, "_PRAGMAS", DURABLE)
    file = tmp_path / "deep" / "store.db"
    await schema.upgrade(f"sqlite:///{file}")
    assert file.stat().st_mode & 0o777 == 0o600
    database = open_database(f"sqlite:///{file}")
    async with database.read() as connection:
        asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "secure_delete")
        found = [(await connection.execute(text(f"PRAGMA {it}"))).scalar_one() for it in asked]
    await database.close()
    assert found == ["wal", 2, 1, 5000, 1]
