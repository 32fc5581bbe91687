"""An API whose keys a service wraps leases for a stated time while it is away; then nothing leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx2

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.store import Store
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.fakes.api import Api, running_api
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, migrated_sqlite, sqlite_url
from tests.fakes.key_service import ScriptedKeys, ring_of, wrapped_by
from tests.fakes.patience import PATIENCE_S

BOUND = timedelta(seconds=3)


@asynccontextmanager
async def served_api(
    folder: Path, keys: ScriptedKeys, hold: timedelta
) -> AsyncIterator[tuple[Api, RootKeeper]]:
    """An API without a key file. Its worker has one: the file whose keys the service has wrapped."""
    KeyRing.create(folder / "keys.json")
    await migrated_sqlite(folder)
    url, clock = sqlite_url(folder), SetClock(NOW)
    worker = await Store.open(url, KeyRing.open(folder / "keys.json", Role.WORKER), clock)
    await wrapped_by(keys, worker)
    await worker.close()
    async with ring_of(keys, url, Role.API, hold, clock) as (store, keeper):
        await keeper.begin()
        async with running_api(folder, ring=store.ring, database_url=url) as api:
            yield api, keeper


def unavailable(answer: httpx2.Response, code: str) -> bool:
    return answer.status_code == 503 and answer.json()["code"] == code


async def test_leases_go_on_until_the_bound_then_all_is_refused_and_it_recovers_by_itself(tmp_path: Path):
    keys = ScriptedKeys()
    async with served_api(tmp_path, keys, BOUND) as (api, keeper):
        connection, key = await api.active_for("reader", Action.TOKEN)
        assert (await api.lease(key)).json()["access_token"] == "at-1"
        keys.away = True
        await keeper.look(confirm=True)
        for _ in range(3):  # from the cache, and of a judged pair
            assert (await api.lease(key)).json()["access_token"] == "at-1"
        await asyncio.sleep(BOUND.total_seconds())
        leases = len(await api.records(AuditAction.LEASE_ISSUED, of=connection.id))
        for answer in (
            await api.lease(key),
            await api.lease(key, label="default"),  # no pair, nothing cached
            await api.get("/v1/connections", key),
            await api.post(f"/v1/connections/{connection.id}/token", key),
        ):
            assert unavailable(answer, "key_unavailable"), answer.text
            assert answer.headers["Retry-After"] == "5"
            assert "at-1" not in answer.text
        assert (await api.get("/readyz")).json()["checks"]["keys"] == "key_unavailable"
        assert len(await api.records(AuditAction.LEASE_ISSUED, of=connection.id)) == leases
        keys.away = False
        async with keeper.running():
            keeper.wake()
            async with asyncio.timeout(PATIENCE_S):
                while (answer := await api.lease(key)).status_code != 200:
                    await asyncio.sleep(0.01)
        assert answer.json()["access_token"] == "at-1"


async def test_a_key_that_is_taken_away_stops_leases_at_once_and_is_named(tmp_path: Path):
    keys = ScriptedKeys()
    async with served_api(tmp_path, keys, timedelta(minutes=5)) as (api, keeper):
        _, key = await api.active_for("reader", Action.TOKEN)
        for _ in range(3):
            assert (await api.lease(key)).json()["access_token"] == "at-1"
        keys.disabled = {ServicePurpose.LEASE}
        await keeper.look(confirm=True)
        answer = await api.lease(key)
        assert unavailable(answer, "key_gone")
        assert "Retry-After" not in answer.headers, "time doesn't end it"
        assert "scripted" not in answer.text, "who may be nobody learns no names"
        assert (await api.get("/v1/connections", key)).status_code in (200, 403), "the rest goes on"
        keys.disabled = set()
        await keeper.look()
        assert (await api.lease(key)).json()["access_token"] == "at-1"
