"""`region promote`: what is urgent for a provider comes before what takes long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.cli import region_promotion
from evergrant_server.cli.region_promotion import Promotion
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import load_settings
from evergrant_server.store import Store
from evergrant_server.temporal_link.reconcile import ReconcileCounts
from evergrant_server.wiring.platform import region_of
from tests.conformance.store.samples import an_attempt, granted
from tests.fakes.databases import lent
from tests.fakes.patience import PATIENCE_S


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


async def test_an_open_attempt_is_decided_before_all_workflows_run(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    KeyRing.create(tmp_path / "keys.json")
    store = await Store.open(postgres_url, KeyRing.open(tmp_path / "keys.json", Role.WORKER), SystemClock())
    settings = load_settings(data_dir=tmp_path, database_url=postgres_url, region="b")
    region = region_of(settings, store)
    assert region is not None
    connection = await granted(store)
    async with store.write() as tx:
        await tx.attempts.open(an_attempt(connection))
        await tx.regions.put("b", standalone=True, taken_from="a")
    temporal = SlowTemporal(store)

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(reconciler=temporal, link=temporal)

    monkeypatch.setattr(region_promotion, "open_platform", opened)
    report = await Promotion(settings, store, region, None).run(old_region_ended=True, wait_s=PATIENCE_S)
    assert temporal.asked == ["start", "refresh"]
    assert (report["fates"], report["lost"]) == ({"lost": 1}, [connection.id])
    await store.close()
