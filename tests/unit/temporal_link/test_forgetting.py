"""What a pass takes out of the store when its time is over."""

from datetime import timedelta

from temporalio.testing import ActivityEnvironment

from activities.maintenance.reconcile import ReconcileActivities
from evergrant_server.core.clock import SetClock
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.core.messages.maintenance import ReconcileRequest
from evergrant_server.store import Store
from evergrant_server.temporal_link import ClosedRunExporter
from tests.unit.temporal_link.conftest import Place

ACME, APP = Tenant("acme"), AppId("app_1")
SHOWED_A_KEY = '{"key": "evg_shown_once"}'


async def test_an_answer_that_showed_a_key_is_remembered_for_a_day(
    place: Place, store: Store, clock: SetClock
):
    reconciler, link = await place(0)
    closed = ClosedRunExporter(store, link, clock)
    upkeep = ReconcileActivities(store, reconciler, closed, clock, timedelta(days=30))
    async with store.write() as tx:
        await tx.idempotency.store(ACME, APP, "k", "hash", 201, SHOWED_A_KEY, clock.now())

    async def remembered_after(passed: timedelta) -> bool:
        clock.advance(passed.total_seconds())
        await ActivityEnvironment().run(upkeep.reconcile, ReconcileRequest())
        async with store.read() as tx:
            return await tx.idempotency.find(ACME, APP, "k") is not None

    assert await remembered_after(timedelta(hours=23))
    assert not await remembered_after(timedelta(hours=2))
