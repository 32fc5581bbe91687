"""A store with two PostgreSQL servers: it follows a promotion, and never goes back to what was replaced."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import make_url, text

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor import database as doctor
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyRing
from evergrant_server.settings import load_settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import Pool, open_database
from evergrant_server.store.database.hosts import ServerState, hosts_of
from tests.conformance.store.samples import ACME, a_connection, added
from tests.fakes.clock import SetClock
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.postgresql.replicated import OWNER, PostgresServer, caught_up, replicated

Pair = tuple[PostgresServer, PostgresServer]
SLEEP = text("SELECT pg_sleep(60)")


def url_of(*servers: PostgresServer) -> str:
    hosts = "&".join(f"host={server.address}" for server in servers)
    return f"postgresql+asyncpg://{OWNER}@/postgres?{hosts}&target_session_attrs=read-write"


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    async with replicated() as servers:
        yield servers


async def write(store: Store) -> int:
    """The port of the server that has taken a write."""
    async with store.write() as tx:
        await tx.connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
        return (await tx.connection.execute(text("SELECT inet_server_port()"))).scalar_one()


async def refusal_of(store: Store) -> str:
    """Why the store takes no write; empty when it takes one."""
    try:
        await write(store)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_UNAVAILABLE:
            raise
        return failure.detail
    return ""


async def port_of(store: Store) -> int:
    """The port of the server that takes the store's writes; 0 while there is none."""
    return 0 if await refusal_of(store) else await write(store)


async def test_a_promotion_cuts_what_hangs_at_the_old_primary_which_gets_no_session_again(
    pair: Pair, ring: KeyRing, clock: SetClock
):
    first, second = pair
    await schema.upgrade(url_of(first, second))
    store = await Store.open(url_of(second, first), ring, clock)
    told: list[str] = []
    store.in_pool(Pool.LEASES).servers.on_failover(lambda: told.append("forget"))
    kept = store.in_pool(Pool.LEDGER).kept()
    await (await kept.driver()).execute("SELECT 1")
    before = await added(store, a_connection(subject="before"))
    await caught_up(first, second)
    async with store.autocommit() as connection:
        hanging = asyncio.create_task(connection.execute(SLEEP))
        first.pause()
        await second.promote()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Exception, match="closed"):
                await hanging
        await connection.invalidate()
    assert await eventually(lambda: port_of(store)) == second.port
    assert told == ["forget"]
    assert await (await kept.driver()).fetchval("SELECT inet_server_port()") == second.port
    async with store.read() as tx:
        assert await tx.connections.get(ACME, before.id) == before
    first.resume()  # the split: both take writes
    fresh = await Store.open(url_of(first, second), ring, clock)
    assert await port_of(fresh) == second.port
    second.kill()
    for process in (store, fresh):
        why = await eventually(
            lambda process=process: refusal_of(process), lambda why: not why or "takes writes" in why
        )
        assert f"{first.address}: it was replaced" in why
    await kept.close()
    await store.close()
    await fresh.close()


async def test_a_store_waits_for_no_silent_server_and_says_what_became_of_each(
    pair: Pair, ring: KeyRing, clock: SetClock
):
    first, second = pair
    await schema.upgrade(url_of(first, second))
    first.pause()
    with fails(ErrorCode.STORE_UNAVAILABLE) as caught:
        await Store.open(url_of(first, second), ring, clock)
    assert f"{first.address}: it didn't answer in time" in caught.value.detail
    assert f"{second.address}: it is a standby" in caught.value.detail
    await second.promote()
    store = await Store.open(url_of(first, second), ring, clock)
    assert await port_of(store) == second.port
    await store.close()


async def test_a_primary_that_was_made_read_only_loses_its_sessions(
    pair: Pair, ring: KeyRing, clock: SetClock
):
    first, second = pair
    await schema.upgrade(url_of(first, second))
    store = await Store.open(url_of(first, second), ring, clock)
    settings = load_settings(database_url=url_of(first, second))
    await caught_up(first, second)
    detail = await doctor.servers(settings)
    assert f"{first.address} is the primary, and can be replaced by {second.address} (0 bytes" in detail
    assert "commits wait for none" in detail

    async def servers() -> dict[str, ServerState]:
        return {server: ServerState(state) for server, state in store.servers.named_states().items()}

    a, b = first.address, second.address
    assert await servers() == {a: ServerState.PRIMARY, b: ServerState.STANDBY}
    await first.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await first.reload()
    assert "read-only" in await eventually(lambda: refusal_of(store), bool)
    await second.promote()
    assert await eventually(lambda: port_of(store)) == second.port
    await eventually(servers, {a: ServerState.REPLACED, b: ServerState.PRIMARY}.__eq__)
    with pytest.raises(CheckFailed, match=f"{a} takes writes, and {b} has replaced it"):
        await doctor.servers(settings)
    first.kill()
    with pytest.raises(CheckFailed, match=f"{a} gives no session"):
        await doctor.servers(settings)
    await eventually(servers, {a: ServerState.AWAY, b: ServerState.PRIMARY}.__eq__)
    second.kill()
    with pytest.raises(CheckFailed, match="none takes writes"):
        await doctor.servers(settings)
    await store.close()


@pytest.mark.parametrize(
    ("query", "hosts"),
    [
        ("", ()),
        ("?host=a", ()),
        ("?host=a:1&host=b:2", (("a", 1), ("b", 2))),
        ("?host=a&host=b:2", (("a", 5432), ("b", 2))),
        ("?host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("?host=a,b", (("a", 5432), ("b", 5432))),
        ("?host=a,b&port=1", (("a", 1), ("b", 1))),
    ],
)
def test_servers_of_a_url(query: str, hosts: tuple[tuple[str, int], ...]):
    assert hosts_of(make_url(f"postgresql://user@/name{query}")) == hosts


@pytest.mark.parametrize("query", ["?host=a:x&host=b", "?host=a&host=b&target_session_attrs=any"])
def test_servers_that_cant_be_used_are_said_before_one_is_asked(query: str):
    with fails(ErrorCode.STORE_UNAVAILABLE):
        open_database(f"postgresql://user@/name{query}")
