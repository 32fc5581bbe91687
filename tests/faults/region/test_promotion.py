"""`region promote`: what is urgent for a provider comes before what takes long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.cli import region_promotion
from evergrant_server.cli.region_promotion import Promotion
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import load_settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from evergrant_server.store.regions import Authority
from evergrant_server.temporal_link.reconcile import ReconcileCounts
from evergrant_server.wiring.platform import region_of as serving_region_of
from tests.conformance.store.failover.test_regions import region_of
from tests.conformance.store.samples import an_attempt, granted
from tests.fakes.databases import lent
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.postgresql.replicated import replayed, replicated


@pytest_asyncio.fixture
async def postgres_url(tmp_path: Path) -> AsyncIterator[str]:
    async with lent("postgresql", tmp_path) as url:
        yield url


class SlowTemporal:
    """Its workflows take longer to start than any provider's grace lasts."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.asked: list[str] = []
        self.decided = asyncio.Event()

    async def reconcile_all(self, *, compare: bool) -> ReconcileCounts:
        await asyncio.wait_for(self.decided.wait(), PATIENCE_S)
        return ReconcileCounts(live=1, started=0, complete=True)

    async def start_workflow(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        self.asked.append("start")
        return True

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> None:
        """The provider refuses the token: it was spent."""
        self.asked.append("refresh")
        async with self.store.write() as tx:
            connection = await tx.connections.get(tenant, connection_id)
            assert connection is not None
            ended = connection.__replace__(state=LifecycleState.NEEDS_REAUTH)
            await tx.connections.replace(ended, expected=connection.revision)
        self.decided.set()


def opened(temporal: Any) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """What opens a platform whose Temporal is this one."""

    @asynccontextmanager
    async def platform(*_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(reconciler=temporal, link=temporal)

    return platform


async def authority_in(store: Store) -> Authority:
    async with store.read() as tx:
        authority = await tx.regions.authority()
    assert authority is not None
    return authority


class Ended(Exception):
    """The command was ended after a step."""


class NoConnections:
    """Temporal beside a database without connections."""

    async def reconcile_all(self, *, compare: bool) -> ReconcileCounts:
        return ReconcileCounts(live=0, started=0, complete=True)


async def test_a_promotion_that_was_ended_after_each_of_its_steps_takes_the_authority_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    KeyRing.create(tmp_path / "keys.json")
    ring, clock = KeyRing.open(tmp_path / "keys.json", Role.WORKER), SystemClock()
    async with replicated(synchronous=True) as (first, second):
        await schema.upgrade(first.url())
        async with region_of(first, "a", ring, authority=timedelta(seconds=1)) as (serving, old, _):
            async with serving.write() as tx:
                await tx.regions.put("a", standalone=False)
            await eventually(old.renew, bool)
            await replayed(second)
        first.kill()
        settings = load_settings(data_dir=tmp_path, database_url=second.url(), region="b")
        store = await Store.open(second.url(), ring, clock)
        region = serving_region_of(settings, store)
        assert region is not None
        before = await authority_in(store)
        monkeypatch.setattr(region_promotion, "open_platform", opened(NoConnections()))

        said = list[str]()

        def promotion(last: str) -> Promotion:
            def say(line: str) -> None:
                said.append(line)
                if last in line:
                    raise Ended

            return Promotion(settings, store, region, say)

        for last in ("database: it is a primary", "waiting", "old authority:"):
            with pytest.raises(Ended):
                await promotion(last).run(old_region_ended=False, wait_s=0)
        said.clear()
        both = [promotion("authority: b").run(old_region_ended=False, wait_s=0) for _ in range(2)]
        ended = await asyncio.gather(*both, return_exceptions=True)
        assert {type(one) for one in ended} == {Ended, dict}, "two administrators at once"
        assert ["waiting" in line for line in said][:3] == [True, True, False], "each waits again"
        with pytest.raises(Ended):
            await promotion("workflows:").run(old_region_ended=False, wait_s=0)
        report = await promotion("nothing ends it").run(old_region_ended=False, wait_s=0)
        assert (report["taken_from"], report["epoch"]) == ("a", before.epoch + 1)
        assert await second.value("SELECT count(*) FROM audit WHERE action = 'region.promoted'") == 1
        await store.close()


async def test_an_open_attempt_is_decided_before_all_workflows_run(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    KeyRing.create(tmp_path / "keys.json")
    store = await Store.open(postgres_url, KeyRing.open(tmp_path / "keys.json", Role.WORKER), SystemClock())
    settings = load_settings(data_dir=tmp_path, database_url=postgres_url, region="b")
    region = serving_region_of(settings, store)
    assert region is not None
    connection = await granted(store)
    async with store.write() as tx:
        await tx.attempts.open(an_attempt(connection))
        await tx.regions.put("a", standalone=False)
    old = await authority_in(store)
    async with store.write() as tx:
        assert await tx.regions.take("b", old)
    temporal = SlowTemporal(store)
    monkeypatch.setattr(region_promotion, "open_platform", opened(temporal))
    report = await Promotion(settings, store, region, None).run(old_region_ended=True, wait_s=PATIENCE_S)
    assert temporal.asked == ["start", "refresh"]
    assert (report["fates"], report["lost"]) == ({"lost": 1}, [connection.id])
    await store.close()


async def test_an_authority_that_was_written_during_the_promotion_isnt_taken(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    KeyRing.create(tmp_path / "keys.json")
    store = await Store.open(postgres_url, KeyRing.open(tmp_path / "keys.json", Role.WORKER), SystemClock())
    region = serving_region_of(load_settings(data_dir=tmp_path, database_url=postgres_url, region="b"), store)
    assert region is not None

    async def attached(*_: Any) -> None:
        async with store.write() as tx:
            await tx.regions.put("a", standalone=False)

    await attached()
    monkeypatch.setattr(Promotion, "_promote_database", attached)
    with fails(ErrorCode.STORE_CONFLICT, "run this again"):
        await Promotion(load_settings(data_dir=tmp_path), store, region, None).run(
            old_region_ended=True, wait_s=0
        )
    assert (await authority_in(store)).name == "a"
    await store.close()
