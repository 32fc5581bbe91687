"""A role of PostgreSQL for each process, made by the page's own SQL: its work is done, and more is refused.

That of gateways: tests/security/gateway/test_database_roles.py.
"""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from evergrant_server.cli.doctor import CheckFailed, database
from evergrant_server.cli.doctor.keys import ROLE
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store.authority.database_roles import PROCESSES, put_role, rights_of_user, writes_of
from evergrant_server.store.database import schema
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import Api, running_api
from tests.fakes.databases import postgres
from tests.security.invariants.test_invariant_7_revoked import (
    test_leases_in_flight_around_a_revocation,
    test_revoking_through_the_api_works_without_temporal,
)
from tests.security.invariants.test_invariant_8_audit import (
    test_every_lease_is_in_the_log_and_repeated_refusals_as_one_record,
)
from tests.unit.api.leases.test_leases import (
    test_a_refresh_that_is_refused_for_good_leads_to_a_connect_link,
    test_an_expired_token_waits_for_one_refresh_shared_by_all,
    test_nothing_there_begins_a_connection_for_an_app_that_may_connect,
)

__all__ = [
    "test_a_refresh_that_is_refused_for_good_leads_to_a_connect_link",
    "test_an_expired_token_waits_for_one_refresh_shared_by_all",
    "test_every_lease_is_in_the_log_and_repeated_refusals_as_one_record",
    "test_leases_in_flight_around_a_revocation",
    "test_nothing_there_begins_a_connection_for_an_app_that_may_connect",
    "test_revoking_through_the_api_works_without_temporal",
]

PAGE = (Path(__file__).parents[3] / "docs/guide/operations.md").read_text(encoding="utf-8")
(SQL,) = re.findall(r"```sql roles\n(.*?)```", PAGE, re.DOTALL)
STATEMENTS = [statement for statement in SQL.split(";") if statement.strip()]
NAMES = re.findall(r"CREATE ROLE (\w+) ", SQL)
KEPT_BY_API = {"audit", "audit_checkpoint", "audit_anchor"}


def url_of(role: str) -> str:
    url = make_url(postgres().url("evergrant")).set(username=role)
    return url.render_as_string(hide_password=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def template_of_the_page() -> AsyncIterator[str]:
    """The name of a database of the page: its roles, the schema by their owner, and each role's rights."""
    server, name = postgres(), "evergrant_page"
    await server.admin(*STATEMENTS)
    try:
        await schema.upgrade(url_of("evergrant"))
        for process in PROCESSES:
            await put_role(url_of("evergrant"), process, f"evergrant_{process.value}")
        await server.admin(f"ALTER DATABASE evergrant RENAME TO {name}")
        yield name
    finally:
        for database in ("evergrant", name):
            await server.drop(server.url(database))
        await server.admin(*(f"DROP ROLE {role}" for role in NAMES))


@pytest_asyncio.fixture
async def database_of_the_page(template_of_the_page: str) -> AsyncIterator[None]:
    """A copy of the page's database, whose own rights are the page's again: a copy hasn't those."""
    server = postgres()
    own = [statement for statement in STATEMENTS if " ON DATABASE " in statement]
    await server.admin(f"CREATE DATABASE evergrant OWNER evergrant TEMPLATE {template_of_the_page}", *own)
    try:
        yield
    finally:
        await server.admin("ALTER ROLE evergrant_worker CONNECTION LIMIT -1")  # what a test may have set
        await server.drop(server.url("evergrant"))


@pytest_asyncio.fixture
async def api(tmp_path: Path, database_of_the_page: None) -> AsyncIterator[Api]:
    """The API as its role, and a worker's store as the worker's."""
    urls = {"database_url": url_of("evergrant_api"), "worker_url": url_of("evergrant_worker")}
    async with running_api(tmp_path, **urls) as running:
        yield running


async def is_allowed(connection: asyncpg.Connection, statement: str) -> bool:
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


@pytest.mark.parametrize("process", [Role.WORKER, Role.API])
async def test_postgresql_lets_a_process_write_rows_and_refuses_the_rest(
    process: Role, database_of_the_page: None
) -> None:
    where = make_url(url_of(f"evergrant_{process.value}"))
    connection = await asyncpg.connect(
        host=str(where.query["host"]), user=where.username, database="evergrant"
    )
    try:
        for table in METADATA.sorted_tables:
            name, rewritten = f'"{table.name}"', process is Role.WORKER or table.name not in KEPT_BY_API
            adds = f"INSERT INTO {name} SELECT * FROM {name} WHERE false"
            assert await is_allowed(connection, adds), adds
            for column in table.columns:
                changes = f'UPDATE {name} SET "{column.name}" = NULL WHERE false'
                assert await is_allowed(connection, changes) is rewritten, changes
            assert await is_allowed(connection, f"DELETE FROM {name} WHERE false") is rewritten, name
            for statement in ("TRUNCATE {} CASCADE", "DROP TABLE {} CASCADE", "ALTER TABLE {} ADD more text"):
                assert not await is_allowed(connection, statement.format(name)), statement.format(name)
            assert not await is_allowed(connection, f"ALTER TABLE {name} DISABLE TRIGGER ALL")
        for statement in (
            *("CREATE TABLE mine (id text)", "CREATE TEMPORARY TABLE mine (id text)", "CREATE ROLE more"),
            *("DELETE FROM alembic_version", "DROP FUNCTION exclude_leases CASCADE", "CREATE SCHEMA mine"),
            "ALTER DATABASE evergrant CONNECTION LIMIT 1",
        ):
            assert not await is_allowed(connection, statement), statement
    finally:
        await connection.close()


def test_the_api_keeps_the_audit_log_and_workers_write_every_table() -> None:
    every = set(METADATA.sorted_tables)
    assert writes_of(Role.WORKER).deleted == every
    assert {table.name for table in every - writes_of(Role.API).deleted} == KEPT_BY_API


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    before = ROLE.set(None)
    KeyRing.create(tmp_path / "keys.json")
    yield load_settings(data_dir=tmp_path, database_url=url_of("evergrant_worker"))
    ROLE.reset(before)


@pytest.mark.usefixtures("database_of_the_page")
async def test_doctor_says_what_a_role_may_beyond_its_job_or_lacks(settings: Settings) -> None:
    for process in PROCESSES:
        ROLE.set(process)
        settings.database_url = url_of(f"evergrant_{process.value}")
        assert await rights_of_user(settings.database_url, process) == (
            f"evergrant_{process.value}",
            ([], [], []),
        )
        assert (await database.role_of_database(settings)).startswith(
            f"evergrant_{process.value} reads every"
        )
    ROLE.set(Role.API)
    settings.database_url = url_of("evergrant_worker")
    with pytest.raises(CheckFailed, match="as which the API connects, may DELETE audit") as wide:
        await database.role_of_database(settings)
    assert wide.value.repair.endswith("db upgrade --api-role evergrant_worker")
    ROLE.set(Role.WORKER)
    settings.database_url = url_of("evergrant_api")
    with pytest.raises(CheckFailed, match="lacks DELETE on audit, DELETE on audit_anchor"):
        await database.role_of_database(settings)
    settings.database_url = url_of("evergrant")
    with pytest.raises(CheckFailed, match="makes tables and functions and owns tables") as owner:
        await database.role_of_database(settings)
    assert "db upgrade --worker-role ROLE" in owner.value.repair
    ROLE.set(None)  # the container isn't named, and the key file is an operator's
    assert await database.role_of_database(settings) == "evergrant reads and writes every table"


async def test_doctor_says_where_postgresql_lets_too_few_in(api: Api) -> None:
    settings = load_settings(
        data_dir=api.parts.settings.data_dir,
        key_file=api.parts.settings.key_path,
        database_url=url_of("evergrant_worker"),
    )
    names = {"role": "worker", "host": "one", "version": "0"}
    async with api.worker.write() as tx:
        for number in range(2):
            host = names | {"host": f"host-{number}"}
            await tx.processes.beat(f"prc_{number}", host, {}, {}, api.clock.now())
    assert (await database.connections(settings)).startswith("2 processes open up to 40 connections")
    await postgres().admin("ALTER ROLE evergrant_worker CONNECTION LIMIT 39")
    with pytest.raises(CheckFailed, match="PostgreSQL lets 39 in") as few:
        await database.connections(settings)
    assert "max_connections = 60" in few.value.repair
