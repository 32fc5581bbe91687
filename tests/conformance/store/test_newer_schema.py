"""A database that the next release has upgraded: this code, the release before, goes on with it.

The same with real processes of both: `python -m tests.upgrade`.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from evergrant_server.cli.doctor import CheckFailed, database
from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import load_settings
from evergrant_server.store import Store
from evergrant_server.store.authority.database_roles import put_role
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import open_database
from tests.conformance.store.samples import an_app
from tests.fakes.clock import SetClock
from tests.fakes.failures import fails
from tests.upgrade.later_release import A_COLUMN, LATER, later_release

A_TABLE = 'op.create_table("thing", sa.Column("tenant", sa.String(), nullable=False))'
NO_MARK = """op.execute("UPDATE alembic_version SET oldest_code = NULL")"""


async def upgraded(url: str, folder: Path, *operations: str) -> None:
    """Have the next release upgrade the database."""
    with later_release(folder, A_COLUMN, A_TABLE, *operations):
        await schema.upgrade(url)


def mark(oldest_code: str) -> str:
    return f"""op.execute("UPDATE alembic_version SET oldest_code = '{oldest_code}'")"""


async def test_a_restarted_process_of_the_release_before_reads_and_writes(
    database_url: str, ring: KeyRing, clock: SetClock, tmp_path: Path
):
    await upgraded(database_url, tmp_path)
    assert await schema.read_stamp(database_url) == (LATER, schema.OLDEST_CODE)
    store = await Store.open(database_url, ring, clock)
    async with store.write() as tx:
        app = await tx.access.put_app(an_app(), expected=None)
    async with store.read() as tx:
        assert await tx.access.app(app.tenant, app.id) is not None
        assert (await tx.connection.execute(text("SELECT later FROM app"))).scalar_one() == "yes"
    await store.close()
    settings = load_settings(data_dir=tmp_path, database_url=database_url)
    assert "works with this one's code" in await database.migrations(settings)


@pytest.mark.parametrize("says", [mark("9998"), NO_MARK], ids=["contracted", "of an unknown kind"])
async def test_a_schema_that_no_longer_suits_this_code_is_refused(
    says: str, database_url: str, ring: KeyRing, clock: SetClock, tmp_path: Path
):
    await upgraded(database_url, tmp_path)
    other = open_database(database_url)
    async with other.write() as connection:
        await connection.exec_driver_sql(says.split('"')[1])
    await other.close()
    for refused in (lambda: Store.open(database_url, ring, clock), lambda: schema.upgrade(database_url)):
        with fails(ErrorCode.SCHEMA_MISMATCH, "newer") as caught:
            await refused()
        assert "newer release" in caught.value.repair
        versions = {"found": LATER, "expected": schema.expected_version()}
        assert caught.value.context.items() >= versions.items()
    settings = load_settings(data_dir=tmp_path, database_url=database_url)
    with pytest.raises(CheckFailed, match="from a newer server"):
        await database.migrations(settings)


async def test_the_release_before_changes_neither_the_schema_nor_the_rights_of_roles(
    database_url: str, tmp_path: Path
):
    await upgraded(database_url, tmp_path)
    assert await schema.upgrade(database_url) == LATER
    assert await schema.current_version(database_url) == LATER
    if database_url.startswith("postgresql"):
        with fails(ErrorCode.SCHEMA_MISMATCH, "newer"):
            await put_role(database_url, Role.WORKER, "postgres")


async def test_nobody_waits_for_a_table_that_a_migration_waits_for(
    database_url: str, ring: KeyRing, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A backup reads for hours. Whoever comes after a statement that waits for the table waits as well."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite's writers come one after another")
    monkeypatch.setattr(schema, "_TABLE_LOCK_MS", 100)
    monkeypatch.setattr(schema, "_BETWEEN_TRIES_S", 0.1)
    store, backup = await Store.open(database_url, ring, clock), open_database(database_url)
    with ExitStack() as stack:
        async with backup.read() as session:
            await session.execute(text("SELECT * FROM app"))
            stack.enter_context(later_release(tmp_path, A_COLUMN))
            upgrade = asyncio.create_task(schema.upgrade(database_url))
            while not (await session.execute(text(_WAITS))).scalar_one():
                await asyncio.sleep(0.01)
            async with store.write() as tx:
                await tx.access.put_app(an_app(), expected=None)
            assert not upgrade.done()
        await upgrade
    assert await schema.current_version(database_url) == LATER
    await store.close()
    await backup.close()


_WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'app'::regclass"


async def test_a_migration_gives_up_where_a_table_stays_locked(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite's writers come one after another")
    monkeypatch.setattr(schema, "_TABLE_LOCK_MS", 20)
    monkeypatch.setattr(schema, "_BETWEEN_TRIES_S", 0.0)
    monkeypatch.setattr(schema, "_LOCK_TRIES", 2)
    backup, before = open_database(database_url), schema.expected_version()
    async with backup.read() as session:
        await session.execute(text("SELECT * FROM app"))
        with later_release(tmp_path, A_COLUMN), fails(ErrorCode.STORE_UNAVAILABLE, "locked") as caught:
            await schema.upgrade(database_url)
    assert "pg_stat_activity" in caught.value.repair
    assert await schema.current_version(database_url) == before
    await backup.close()
