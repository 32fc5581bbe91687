"""The lease cache: no expired lease, none older than the bound, one request for simultaneous callers."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event, Semaphore
from typing import Any

import pytest
from evergrant import AsyncEvergrant, Evergrant, Lease, ReconnectNeeded, single_flight
from evergrant.api.leases import LeaseRequest, LeaseResponse
from evergrant.lease_cache import LeaseCache
from evergrant.testing import ManualClock
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.patience import PATIENCE_S
from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import (
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    leased,
    problem,
)

ROUTE = "POST /v1/lease"
START = datetime(2030, 1, 1, tzinfo=UTC)
S = timedelta(seconds=1)
HOUR = timedelta(hours=1)
REQUEST = LeaseRequest("crm", "alice")


@pytest.fixture
def now() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def client_arguments(now: ManualClock) -> dict[str, Any]:
    return {"clock": now}


def expiring(after: timedelta, **changes: Any) -> ScriptedResponse:
    return lease(expires_at=(START + after).isoformat(), **changes)


async def test_the_same_request_is_answered_from_the_cache(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, expiring(HOUR))
    first = await caller.call("lease", "crm", "alice")
    assert await caller.call("lease", "crm", "alice") is first
    assert await caller.call("token", "crm", "alice") == TOKEN
    assert len(evergrant.requests) == 1


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("erp", "alice"), {}),
        (("crm", "bob"), {}),
        (("crm", "alice"), {"label": "second"}),
        (("crm", "alice"), {"scopes": ("read",)}),
    ],
)
async def test_another_request_is_sent(
    caller: Caller, evergrant: ScriptedEvergrant, names: tuple[str, str], more: dict[str, Any]
):
    evergrant.script(ROUTE, expiring(HOUR))
    await caller.call("lease", "crm", "alice")
    await caller.call("lease", *names, **more)
    assert len(evergrant.requests) == 2


async def test_a_lease_outlives_a_revocation_by_the_bound_at_most(
    caller: Caller, evergrant: ScriptedEvergrant, now: ManualClock
):
    evergrant.script(ROUTE, expiring(HOUR), problem(409, "ReconnectNeeded", "connection_revoked"))
    await caller.call("lease", "crm", "alice")
    now.advance(29.9 * S)
    assert isinstance(await caller.call("lease", "crm", "alice"), Lease)
    now.advance(0.1 * S)
    with pytest.raises(ReconnectNeeded, match="connection_revoked"):
        await caller.call("lease", "crm", "alice")


async def test_the_date_header_is_the_servers_time(caller: Caller, evergrant: ScriptedEvergrant):
    """A lease that has expired by this machine's clock is cached all the same."""
    date = {"date": "Mon, 31 Dec 2029 23:00:00 GMT"}
    evergrant.script(ROUTE, ScriptedResponse(200, expiring(-30 * 60 * S).body, date))
    await caller.call("lease", "crm", "alice")
    await caller.call("lease", "crm", "alice")
    assert len(evergrant.requests) == 1


async def test_a_missing_consent_is_not_cached(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, consent_required(), expiring(HOUR))
    assert not isinstance(await caller.call("lease", "crm", "alice"), Lease)
    assert isinstance(await caller.call("lease", "crm", "alice"), Lease)


@pytest.mark.parametrize(("name", "arguments"), [("revoke", ("left",)), ("refresh", ())])
async def test_a_change_by_this_client_invalidates_the_lease(
    caller: Caller, evergrant: ScriptedEvergrant, name: str, arguments: tuple[str, ...]
):
    evergrant.script(ROUTE, expiring(HOUR))
    changed = ScriptedResponse(202, connection(state="revoking"))
    evergrant.script(f"POST /v1/connections/con_1/{name}", changed)
    await caller.call("lease", "crm", "alice")
    await caller.call(name, "con_1", *arguments)
    await caller.call("lease", "crm", "alice")
    assert evergrant.count(ROUTE) == 2


async def test_a_bound_of_zero_caches_nothing(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client:
        await client.lease("crm", "alice")
        await client.lease("crm", "alice")
    assert len(evergrant.requests) == 2
    with pytest.raises(ValueError, match="cache_leases_for"):
        Evergrant(evergrant.url, "key", cache_leases_for=-S)


async def test_simultaneous_tasks_share_one_request(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client:
        answers = await asyncio.gather(*(client.lease("crm", "alice") for _ in range(50)))
        assert len({id(answer) for answer in answers}) == 1
        assert len(evergrant.requests) == 1


async def test_a_cancelled_task_does_not_cancel_the_shared_request(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key") as client:
        first = asyncio.create_task(client.lease("crm", "alice"))
        second = asyncio.create_task(client.lease("crm", "alice"))
        await asyncio.sleep(0)
        first.cancel()
        assert isinstance(await second, Lease)
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(evergrant.requests) == 1


async def test_simultaneous_threads_share_one_request(
    evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch
):
    """It is answered when all the others wait for its answer."""
    answered, waiting = Event(), Semaphore(0)

    class Watched(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waiting.release()
            return super().result(timeout)

    monkeypatch.setattr(single_flight, "Future", Watched)
    evergrant.script(ROUTE, replace(lease(), held=answered))
    with (
        ThreadPoolExecutor(8) as pool,
        Evergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client,
    ):
        calls = [pool.submit(client.lease, "crm", "alice") for _ in range(8)]
        for _ in calls[1:]:
            assert await asyncio.to_thread(waiting.acquire, timeout=PATIENCE_S)
        answered.set()
        answers = [await asyncio.wrap_future(call) for call in calls]
    assert len({id(answer) for answer in answers}) == 1
    assert len(evergrant.requests) == 1


class TestLeaseCache:
    @pytest.mark.parametrize(
        ("lifetime_s", "passed_s", "min_ttl_s", "served"),
        [
            (3600, 29.9, None, True),
            (3600, 30, None, False),  # the bound
            (3600, -1, None, False),  # the clock was set back
            (20, 17.9, None, True),
            (20, 18, None, False),  # the last tenth of a lifetime
            (600, 0, 599, True),
            (600, 0, 601, False),
        ],
    )
    def test_a_lease_is_served_while_young_and_valid_for_long_enough(
        self, now: ManualClock, lifetime_s: float, passed_s: float, min_ttl_s: float | None, served: bool
    ):
        cache = LeaseCache(30 * S, now)
        cache.store(REQUEST, response(START + lifetime_s * S), cache.begin_request())
        now.advance(passed_s * S)
        min_ttl = None if min_ttl_s is None else min_ttl_s * S
        assert (cache.get(LeaseRequest("crm", "alice", min_ttl=min_ttl)) is not None) == served

    def test_the_servers_date_corrects_a_clock_that_is_behind(self, now: ManualClock):
        """The `Date` header (RFC 9110 section 6.6.1); this machine is an hour behind it."""
        cache = LeaseCache(30 * S, now)
        leased = response(START + HOUR + 20 * S).result
        cache.store(REQUEST, LeaseResponse(leased, START + HOUR), cache.begin_request())
        now.advance(16 * S)
        assert cache.get(REQUEST) is not None
        now.advance(S)
        assert cache.get(REQUEST) is None

    @given(
        lifetime=st.floats(0, 100),
        response_time=st.floats(0, 50),
        passed=st.floats(0, 200),
        bound=st.floats(0, 100),
        min_ttl=st.none() | st.floats(0, 100),
    )
    def test_a_served_lease_is_valid_young_and_long_enough(
        self, lifetime: float, response_time: float, passed: float, bound: float, min_ttl: float | None
    ):
        now = ManualClock(START)
        cache = LeaseCache(bound * S, now)
        ticket = cache.begin_request()
        now.advance(response_time * S)
        cache.store(REQUEST, response(START + lifetime * S), ticket)
        now.advance(passed * S)
        least = None if min_ttl is None else min_ttl * S
        served = cache.get(LeaseRequest("crm", "alice", min_ttl=least))
        if served is not None:
            assert served.expires_at is not None
            assert now() < served.expires_at
            assert served.expires_at - now() >= (min_ttl or 0) * S
            assert now() - START < bound * S


def response(expires_at: datetime | None = None) -> LeaseResponse:
    return LeaseResponse(leased(expires_at), None)
