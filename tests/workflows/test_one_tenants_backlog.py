"""A worker whose slots are taken: whose refresh is next, and what a provider that hangs leaves to others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.worker import Worker

from activities.support import interceptor
from activities.support.interceptor import ACTIVITY_SLOTS, ActivityInterceptor
from activities.support.temporal import heartbeating
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import Tenant, new_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.messages.connection import ConnectionStart, EnsureFresh, RefreshReason
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.queue_order import QueueOrderInterceptor
from evergrant_server.temporal_link.start_requests import connection as start_of
from tests.fakes.patience import PATIENCE_S
from tests.fakes.temporal import SANDBOX
from tests.workflows.connection_runs import ASKED, a_grant, a_start
from workflows.registry import WORKFLOWS

GREEDY, SECOND, OTHER = Tenant("greedy"), Tenant("second"), Tenant("other")


class Provider:
    """Its refreshes hang until `answers` is set; those of the tenants in `well` never do."""

    def __init__(self, *well: Tenant) -> None:
        self.asked: list[Tenant] = []
        self.answers = asyncio.Event()
        self._well = well

    @activity.defn(name=jobs.REFRESH_GRANT.name)
    async def refresh_grant(self, request: RefreshGrant) -> GrantResult:
        self.asked.append(request.tenant)
        if request.tenant not in self._well:
            async with heartbeating():
                await self.answers.wait()
        return a_grant(request.generation + 1)

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.asked) < times:
                await asyncio.sleep(0.01)


class Place:
    """One worker with few slots, and the connections that it serves."""

    def __init__(self, client: Client, folder: Path) -> None:
        KeyRing.create(folder / "keys.json")
        self._ring = KeyRing.open(folder / "keys.json", Role.WORKER)
        self.queue = f"queue-{new_id('out')[-8:]}"
        self._client = client
        self.link = TemporalLink(client, self._ring, SystemClock(), self.queue)

    @asynccontextmanager
    async def worker(
        self, provider: Provider, slots: int, shared: int = ACTIVITY_SLOTS
    ) -> AsyncIterator[None]:
        """`shared` is how many slots the tenants are told to share."""
        async with Worker(
            self._client,
            task_queue=self.queue,
            workflows=WORKFLOWS,
            activities=[provider.refresh_grant],
            interceptors=[QueueOrderInterceptor(), ActivityInterceptor(self._ring, SystemClock(), shared)],
            workflow_runner=SANDBOX,
            max_concurrent_activities=slots,
        ):
            yield

    async def connections(self, tenant: Tenant, number: int, lasts: timedelta) -> list[ConnectionStart]:
        """Active ones whose token ends soon, or not for long."""
        now = datetime.now(UTC)
        grant = {
            "generation": 1,
            "refreshable": True,
            "installed_at": now - lasts,
            "obtained_at": now - lasts,
        }
        life = {"state": LifecycleState.ACTIVE, "expires_at": now + lasts, **grant}
        starts = [a_start(**life).model_copy(update={"tenant": tenant}) for _ in range(number)]
        await asyncio.gather(*(self.link.start(start_of(it)) for it in starts))
        return starts

    async def refreshed(self, start: ConnectionStart) -> int:
        """What a caller gets who waits for a newer token."""
        request = EnsureFresh(seen_generation=1, context=ASKED, refresh_reason=RefreshReason.COMMAND)
        answer = await self.link.ensure_fresh(start.tenant, start.connection_id, request, timeout=PATIENCE_S)
        return answer.generation


async def test_waiting_callers_come_before_another_tenants_backlog_and_tenants_in_turn(
    client: Client, tmp_path: Path
):
    place, provider, backlog = Place(client, tmp_path), Provider(), 60
    async with place.worker(provider, slots=1):
        waited_for = await place.connections(OTHER, 5, timedelta(days=1))
        await place.connections(GREEDY, backlog, timedelta(seconds=1))
        await provider.until_asked(1)
        await place.connections(SECOND, 3, timedelta(seconds=1))
        callers = [asyncio.create_task(place.refreshed(it)) for it in waited_for]
        await until_waiting(client, place.queue, backlog - 1 + 3 + 5)
        provider.answers.set()
        assert set(await asyncio.gather(*callers)) == {2}
        await provider.until_asked(backlog + 3 + 5)
    first, callers, ahead = provider.asked[:1], provider.asked[1:6], provider.asked[6:]
    assert (first, callers) == ([GREEDY], [OTHER] * 5)
    assert set(ahead[-backlog // 2 :]) == {GREEDY}, "without fairness the second tenant comes last"


async def until_waiting(client: Client, queue: str, number: int) -> None:
    """Until so many activities wait for a slot."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        report_stats=True,
    )
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await client.workflow_service.describe_task_queue(request)
            if answer.stats.approximate_backlog_count >= number:
                return
            await asyncio.sleep(0.1)


async def test_a_provider_that_hangs_leaves_slots_to_others(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(interceptor, "PATIENCE_S", 0.5)
    place, provider, slots = Place(client, tmp_path), Provider(OTHER), 12
    async with place.worker(provider, slots, slots):
        hanging = await place.connections(GREEDY, 40, timedelta(days=1))
        callers = [asyncio.create_task(place.refreshed(it)) for it in hanging]
        await provider.until_asked(slots // 3)
        (waited_for,) = await place.connections(OTHER, 1, timedelta(days=1))
        assert await asyncio.wait_for(place.refreshed(waited_for), PATIENCE_S) == 2
        assert provider.asked.count(GREEDY) <= slots // 2
        provider.answers.set()
        assert set(await asyncio.gather(*callers)) == {2}, "those that gave their slot back are tried again"
