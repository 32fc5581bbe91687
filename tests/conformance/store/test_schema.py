"""The schema: made from nothing, the same as the models, refused when it is another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, inspect, text

from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from evergrant_server.store.access import AppRow
from evergrant_server.store.authority import row_mac
from evergrant_server.store.connections.tables import ConnectionRow, ConsentRow
from evergrant_server.store.database import schema, sqlite
from evergrant_server.store.database.columns import METADATA, table_of
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.rows import column_values
from evergrant_server.store.integrations.integrations import IntegrationRow
from evergrant_server.store.permits import PermitRow
from tests.conformance.store.samples import GITHUB, a_connection, a_consent, a_permit, an_app
from tests.fakes.clock import SetClock
from tests.fakes.databases import DURABLE
from tests.fakes.failures import fails


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


async def test_integrations_of_the_first_schema_bind_from_then_on_and_their_consents_under_way_do_not(
    empty_url: str,
):
    connection = a_connection()
    old = {
        IntegrationRow: column_values(GITHUB),
        ConnectionRow: column_values(connection),
        ConsentRow: column_values(a_consent(connection)),
    }
    database = open_database(empty_url)
    async with database.write() as session:
        await session.run_sync(lambda it: command.upgrade(configuration(it), "0001"))
        for table, values in old.items():
            there = await session.run_sync(columns_of, table_of(table).name)
            kept = {name: value for name, value in values.items() if name in there}
            await session.execute(insert(table_of(table)).values(kept))
    await schema.upgrade(empty_url)
    async with database.read() as session:
        found = [
            (await session.execute(text(f"SELECT {name}"))).scalar_one()
            for name in ("binding FROM integration", "binding FROM consent", "on_reconnect FROM integration")
        ]
    await database.close()
    assert found == ["app", "none", "same"]


async def test_permits_of_before_stay_good_and_mean_the_same(empty_url: str, ring: KeyRing, clock: SetClock):
    app = an_app()
    permit = a_permit(app, scope_ceiling=("repo",))
    old = {AppRow: column_values(app), PermitRow: column_values(permit)}
    database = open_database(empty_url)
    async with database.write() as session:
        await session.run_sync(lambda it: command.upgrade(configuration(it), "0006"))
        for (table, values), value in zip(old.items(), (app, permit), strict=True):
            there = await session.run_sync(columns_of, table_of(table).name)
            kept = {name: it for name, it in values.items() if name in there}
            await session.execute(insert(table_of(table)).values(kept | {"mac": row_mac(ring, value)}))
    await database.close()
    await schema.upgrade(empty_url)
    store = await Store.open(empty_url, ring, clock)
    async with store.read() as tx:
        assert await tx.access.permits(app.tenant, app.id) == [permit]
    await store.close()


def columns_of(connection: Connection, table: str) -> set[str]:
    return {it["name"] for it in inspect(connection).get_columns(table)}


def configuration(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.attributes["connection"] = connection
    return config


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


async def test_a_database_from_a_newer_version_is_refused(database_url: str, ring: KeyRing, clock: SetClock):
    database = open_database(database_url)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    for refused in (lambda: Store.open(database_url, ring, clock), lambda: schema.upgrade(database_url)):
        with fails(ErrorCode.SCHEMA_MISMATCH, "newer") as caught:
            await refused()
        versions = {"found": "9999", "expected": schema.expected_version()}
        assert caught.value.context.items() >= versions.items()
        assert "newer release" in caught.value.context["repair"]
    assert await schema.current_version(database_url) == "9999"


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
