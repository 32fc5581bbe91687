"""What refreshes that are waited for cost the store and Temporal, however many they are."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from evergrant_server.access import refreshes
from evergrant_server.access.refreshes import POLL_INTERVAL_S, RefreshKey, RefreshWaiter
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure, Repairer
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult, RefreshReason
from evergrant_server.store import ConnectionPosition, LeaseRow

ACME, OTHER = Tenant("acme"), Tenant("other")
WAIT_S = 1.5
LONGEST = timedelta(minutes=2)  # for waits that another event ends


class Rows:
    """Stands in for the lease rows of connections that nothing refreshes, and counts the queries."""

    def __init__(self) -> None:
        self.loads = self.most = 0
        self.polled_at: list[float] = []
        self.generations: dict[str, int] = {}
        self.integrations: dict[str, str] = {}
        self.at_provider = True
        self.looks = 0

    async def is_at_provider(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        self.looks += 1
        return self.at_provider

    async def load(self, tenant: Tenant, connection_id: ConnectionId) -> LeaseRow:
        self.loads += 1
        integration = IntegrationId(self.integrations.get(connection_id, "int_1"))
        who = (tenant, connection_id, integration, "crm", "gitlab", "user-1", "default")
        state, generation = LifecycleState.ACTIVE, self.generations.get(connection_id, 1)
        return LeaseRow(*who, state, None, None, None, 1, generation, None, None, None)

    async def positions(self, ids: list[ConnectionId]) -> dict[tuple[str, str], ConnectionPosition]:
        self.polled_at.append(asyncio.get_running_loop().time())
        self.most = max(self.most, len(ids))
        active = LifecycleState.ACTIVE
        return {(ACME, it): ConnectionPosition(active, self.generations.get(it, 1)) for it in ids}


class Temporal:
    """Answers no update until `answers` is set."""

    def __init__(self) -> None:
        self.open: list[Tenant] = []
        self.asked: list[bool] = []  # whether ahead
        self.most = 0
        self.answers = asyncio.Event()

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult:
        self.open.append(tenant)
        self.asked.append(request.ahead)
        self.most = max(self.most, len(self.open))
        try:
            await self.answers.wait()
        finally:
            self.open.remove(tenant)
        return EnsureFreshResult(generation=1, problem=ErrorCode.PROVIDER_ERROR)


def wait_for(waiter: RefreshWaiter, connection: str, tenant: Tenant = ACME, by: str = "app:a"):
    key = RefreshKey(tenant, ConnectionId(connection), 1, RefreshReason.DUE)
    return asyncio.create_task(waiter.wait_for_newer(key, RequestContext(by=by)))


async def test_two_thousand_waiting_refreshes_cost_few_queries_while_temporal_is_away():
    rows = Rows()
    waiter = RefreshWaiter(rows, Temporal(), timedelta(seconds=WAIT_S))  # type: ignore[arg-type]  # stand-ins
    results = await asyncio.gather(*(wait_for(waiter, f"con_{n}") for n in range(2000)))
    assert {it.failure.code for it in results if it.failure} == {ErrorCode.REFRESH_PENDING}
    assert rows.loads <= 4000, "each refresh reads its row when it begins and when it ends"
    assert rows.most <= 500
    pauses = [later - earlier for earlier, later in zip(rows.polled_at, rows.polled_at[4:], strict=False)]
    assert all(it > POLL_INTERVAL_S * 0.9 for it in pauses), "2,000 are four polls in each interval"


@pytest.mark.parametrize(("at_provider", "turn"), [(True, Repairer.TIME), (False, Repairer.OPERATOR)])
async def test_what_no_worker_has_begun_is_the_operators(at_provider: bool, turn: Repairer):
    """Temporal or the worker hangs: a caller who is told to wait would wait for ever."""
    rows = Rows()
    rows.at_provider = at_provider
    waiter = RefreshWaiter(rows, Temporal(), timedelta(seconds=0.2))  # type: ignore[arg-type]  # stand-ins
    results = await asyncio.gather(*(wait_for(waiter, "con_1") for _ in range(50)))
    failures = [result.failure for result in results if result.failure]
    assert {(it.code, it.repairer) for it in failures} == {(ErrorCode.REFRESH_PENDING, turn)}
    assert all(("doctor" in it.repair) is not at_provider for it in failures)
    assert len(failures) == 50
    assert rows.looks == 1, "callers share the look"
    await waiter.stop()


async def test_a_caller_waits_no_longer_than_it_says():
    waiter = RefreshWaiter(Rows(), Temporal(), LONGEST)  # type: ignore[arg-type]  # stand-ins
    key = RefreshKey(ACME, ConnectionId("con_1"), 1, RefreshReason.DUE)
    result = await waiter.wait_for_newer(key, RequestContext(by="app:a"), 0.1)
    assert result.failure is not None
    assert result.failure.code is ErrorCode.REFRESH_PENDING
    await waiter.stop()


async def test_a_newer_generation_ends_the_wait_of_its_connection_alone():
    rows = Rows()
    waiter = RefreshWaiter(rows, Temporal(), LONGEST)  # type: ignore[arg-type]  # stand-ins
    one, other = wait_for(waiter, "con_1"), wait_for(waiter, "con_2")
    rows.generations["con_1"] = 2
    result = await one
    assert result.failure is None
    assert result.row is not None
    assert result.row.generation == 2
    assert not other.done()
    await waiter.stop()
    with pytest.raises(asyncio.CancelledError):
        await other


async def test_a_tenant_whose_refreshes_hang_leaves_another_its_turn_at_temporal():
    temporal = Temporal()
    waiter = RefreshWaiter(Rows(), temporal, LONGEST)  # type: ignore[arg-type]  # stand-ins
    hanging = [wait_for(waiter, f"con_{n}") for n in range(500)]
    await until(lambda: len(temporal.open) >= 43)
    others = [wait_for(waiter, f"con_{n}", OTHER, "app:b") for n in range(20)]
    await until(lambda: temporal.open.count(OTHER) == 20)
    assert temporal.most <= 128
    assert temporal.open.count(ACME) <= 43, "a third of the turns for one app"
    another = wait_for(waiter, "con_501", ACME, "app:second")
    await until(lambda: temporal.open.count(ACME) == 44)
    temporal.answers.set()
    results = await asyncio.gather(*hanging, *others, another)
    assert {it.failure.code for it in results if it.failure} == {ErrorCode.PROVIDER_ERROR}, (
        "each had its turn"
    )


async def test_an_integration_whose_refreshes_hang_leaves_another_of_the_same_app_its_turn():
    rows, temporal = Rows(), Temporal()
    waiter = RefreshWaiter(rows, temporal, LONGEST)  # type: ignore[arg-type]  # stand-ins
    hanging = [wait_for(waiter, f"con_{n}") for n in range(100)]
    await until(lambda: len(temporal.open) == 43)
    rows.integrations["con_100"] = "int_2"
    another = wait_for(waiter, "con_100")
    await until(lambda: len(temporal.open) == 44)
    temporal.answers.set()
    await asyncio.gather(*hanging, another)


async def test_a_caller_that_comes_again_joins_what_was_asked_while_the_provider_hangs():
    """Callers that time out together would otherwise ask the workflow again together."""
    temporal = Temporal()
    waiter = RefreshWaiter(Rows(), temporal, timedelta(seconds=0.2))  # type: ignore[arg-type]  # stand-ins
    first = await wait_for(waiter, "con_1")
    assert first.failure is not None
    assert first.failure.code is ErrorCode.REFRESH_PENDING
    again = wait_for(waiter, "con_1")
    await asyncio.sleep(0)
    temporal.answers.set()
    result = await again
    assert result.failure is not None
    assert result.failure.code is ErrorCode.PROVIDER_ERROR
    assert len(temporal.asked) == 1


async def test_refreshes_that_nobody_waits_for_leave_temporal_to_the_callers_of_their_own_app():
    temporal = Temporal()
    waiter = RefreshWaiter(Rows(), temporal, LONGEST)  # type: ignore[arg-type]  # stand-ins
    due = [RefreshKey(ACME, ConnectionId(f"con_{number}"), 1, RefreshReason.DUE) for number in range(500)]
    for _ in range(2):
        for key in due:
            waiter.start_refresh(key, RequestContext(by="app:a"))
        await until(lambda: len(temporal.open) == 11)
    callers = [wait_for(waiter, f"con_{n}") for n in range(40)]
    await until(lambda: temporal.asked.count(False) == 40)
    assert temporal.asked.count(True) == 11, "a third of 32 turns for one app, and nothing waits for one"
    temporal.answers.set()
    await asyncio.gather(*callers)
    waiter.start_refresh(due[-1]._replace(seen=2), RequestContext(by="app:a"))
    await until(lambda: temporal.asked.count(True) == 12)
    await waiter.stop()


async def test_a_caller_who_waits_does_not_join_a_refresh_that_nobody_waits_for():
    """The workflow has to hear of the caller: it sends the refresh ahead after all callers'."""
    temporal = Temporal()
    waiter = RefreshWaiter(Rows(), temporal, LONGEST)  # type: ignore[arg-type]  # stand-ins
    key = RefreshKey(ACME, ConnectionId("con_1"), 1, RefreshReason.DUE)
    for _ in range(3):
        waiter.start_refresh(key, RequestContext(by="app:a"))
    await until(lambda: temporal.asked == [True])
    callers = [wait_for(waiter, "con_1") for _ in range(3)]
    await until(lambda: temporal.asked == [True, False])
    waiter.start_refresh(key, RequestContext(by="app:a"))
    temporal.answers.set()
    results = await asyncio.gather(*callers)
    assert {it.failure.code for it in results if it.failure} == {ErrorCode.PROVIDER_ERROR}
    assert temporal.asked == [True, False]


async def test_the_store_isnt_asked_for_a_refresh_that_nobody_waits_for():
    """While Temporal is away each lease of a due token begins one: hundreds would be polled for nothing."""
    temporal, rows = Temporal(), Rows()
    waiter = RefreshWaiter(rows, temporal, LONGEST)  # type: ignore[arg-type]  # stand-ins
    ahead = [RefreshKey(ACME, ConnectionId(f"con_{n}"), 1, RefreshReason.DUE) for n in range(200)]
    for key in ahead:
        waiter.start_refresh(key, RequestContext(by="app:a"))
    caller = wait_for(waiter, "con_200")
    await until(lambda: len(rows.polled_at) >= 3)
    assert rows.most == 1, "the caller's alone"
    temporal.answers.set()
    await caller
    await waiter.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONGEST.total_seconds()):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("problem", "told"), [(ErrorCode.EGRESS_REFUSED, "x" * 1000), (ErrorCode.CLIENT_REJECTED, "")]
)
def test_the_workflows_words_are_told_of_a_host_that_is_refused_alone_and_cut(problem: ErrorCode, told: str):
    """Who writes in Temporal's namespace chooses them."""
    failure = refreshes._failure_of(EnsureFreshResult(generation=1, problem=problem, why="x" * 2000), 1)
    assert (failure.code, failure.detail) == (problem, Failure(problem, told).detail)
