"""PostgreSQL: requests that hang, and many callers that wait for rows, take no other work's connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.store.database import engine
from tests.fakes.api import OTHER, Api, running_api
from tests.fakes.databases import Postgres, lent, postgres_server
from tests.fakes.patience import PATIENCE_S

__all__ = ["postgres_server"]
_HANGING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest_asyncio.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    for limit in ("statement_timeout", "lock_timeout"):  # what hangs does so until the test lets it go on
        monkeypatch.setitem(engine._POSTGRES_SETTINGS, limit, f"{2 * PATIENCE_S * 1000:.0f}")
    monkeypatch.setattr(engine, "_COMMAND_TIMEOUT_S", 2 * PATIENCE_S)
    monkeypatch.setattr(engine, "_POOL_TIMEOUT_S", 2 * PATIENCE_S)
    async with lent("postgresql", tmp_path) as url, running_api(tmp_path, database_url=url) as running:
        yield running


@asynccontextmanager
async def locked(api: Api, server: Postgres, table: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Every statement that reads this table hangs inside the block. Yields a wait until so many do."""
    database = api.parts.settings.database_url.partition("?")[0].rpartition("/")[2]
    host = server.url("x").rpartition("=")[2]
    connection = await asyncpg.connect(host=host, user="postgres", database=database)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")

            async def until_hanging(number: int) -> None:
                async with asyncio.timeout(PATIENCE_S):
                    while await connection.fetchval(_HANGING) < number:
                        await asyncio.sleep(0.01)

            yield until_hanging
    finally:
        await connection.close()


async def test_lists_that_hang_keep_no_lease_waiting(api: Api, postgres_server: Postgres):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    admin = await api.app_with("admin", Action.ADMIN)
    assert (await api.lease(key)).status_code == 200  # which begins the tree of the ledger's shard
    async with locked(api, postgres_server, "webhook") as until_hanging:
        lists = [asyncio.create_task(api.get("/v1/webhooks", admin)) for _ in range(40)]
        await until_hanging(4)  # all that one app may have at once
        assert (await asyncio.wait_for(api.lease(key), PATIENCE_S)).status_code == 200
        async with asyncio.timeout(PATIENCE_S):  # the lists' callers are read from the pool of leases
            while api.store.connections_in_use()["leases"]:
                await asyncio.sleep(0.01)
        assert api.store.connections_in_use() == {"requests": 4, "leases": 0, "poller": 0, "ledger": 1}
        assert not any(it.done() for it in lists)
    assert {(await it).status_code for it in lists} == {200}


async def test_five_hundred_callers_whose_rows_hang_leave_the_ledger_its_connection(
    api: Api, postgres_server: Postgres
):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200  # its row is known from here on
    async with locked(api, postgres_server, "key") as until_hanging:
        callers = [asyncio.create_task(api.lease(key, label=f"no-{n}")) for n in range(500)]
        await until_hanging(4)
        assert (await asyncio.wait_for(api.lease(key), PATIENCE_S)).status_code == 200
        polled = await asyncio.wait_for(api.parts.lease_rows.positions([]), PATIENCE_S)
        assert polled == {}
        assert not any(it.done() for it in callers)
        for task in callers:
            task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_lists_of_one_app_that_hang_leave_connections_to_other_apps_and_tenants(
    api: Api, postgres_server: Postgres
):
    greedy = await api.app_for("greedy", Action.ADMIN)
    await api.integration("theirs", tenant=OTHER)
    others = [
        (await api.app_with("second", Action.CONNECT), "crm"),
        (await api.app_with("other", Action.CONNECT, tenant=OTHER), "theirs"),
    ]
    async with locked(api, postgres_server, "approval") as until_hanging:
        lists = [asyncio.create_task(api.get("/v1/approvals", greedy)) for _ in range(40)]
        await until_hanging(4)
        for key, integration in others:
            body = {"integration": integration, "subject": "user-1"}
            answer = await asyncio.wait_for(api.post("/v1/connections", key, body), PATIENCE_S)
            assert answer.status_code == 201, answer.text
        assert not any(it.done() for it in lists)
    assert {(await it).status_code for it in lists} == {200}
