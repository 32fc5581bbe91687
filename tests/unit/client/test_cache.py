"""Leases kept in this process: never expired, never older than the bound, asked for once at a time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from evergrant import AsyncEvergrant, Evergrant, Lease, ProviderUnavailable, ReconnectNeeded
from evergrant.caching import CacheKey, LeaseCache
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    problem,
)

ROUTE = "POST /v1/lease"
START = datetime(2030, 1, 1, tzinfo=UTC)
S = timedelta(seconds=1)


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture(params=["blocking", "asyncio"])
async def cached(request: pytest.FixtureRequest, evergrant: ScriptedEvergrant, now: Now):
    if request.param == "blocking":
        with Evergrant(evergrant.url, "evg_key", clock=now) as client:
            yield Caller(client)
    else:
        async with AsyncEvergrant(evergrant.url, "evg_key", clock=now) as client:
            yield Caller(client)


def expiring(after: timedelta, **changes: Any) -> ScriptedResponse:
    return lease(expires_at=(START + after).isoformat(), **changes)


async def test_the_same_question_is_answered_from_here(cached: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, expiring(timedelta(hours=1)))
    first = await cached.call("lease", "crm", "alice")
    assert await cached.call("lease", "crm", "alice") is first
    assert await cached.call("token", "crm", "alice") == TOKEN
    assert len(evergrant.seen) == 1


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("erp", "alice"), {}),
        (("crm", "bob"), {}),
        (("crm", "alice"), {"label": "second"}),
        (("crm", "alice"), {"scopes": ("read",)}),
    ],
)
async def test_another_question_is_asked(
    cached: Caller, evergrant: ScriptedEvergrant, names: tuple[str, str], more: dict[str, Any]
):
    evergrant.script(ROUTE, expiring(timedelta(hours=1)))
    await cached.call("lease", "crm", "alice")
    await cached.call("lease", *names, **more)
    assert len(evergrant.seen) == 2


async def test_a_lease_outlives_a_revocation_by_the_bound_at_most(
    cached: Caller, evergrant: ScriptedEvergrant, now: Now
):
    evergrant.script(
        ROUTE, expiring(timedelta(hours=1)), problem(409, "ReconnectNeeded", "connection_revoked")
    )
    await cached.call("lease", "crm", "alice")
    now.at += 29.9 * S
    assert isinstance(await cached.call("lease", "crm", "alice"), Lease)
    now.at += 0.1 * S
    with pytest.raises(ReconnectNeeded, match="connection_revoked"):
        await cached.call("lease", "crm", "alice")


async def test_a_clock_set_back_makes_no_lease_younger(
    cached: Caller, evergrant: ScriptedEvergrant, now: Now
):
    evergrant.script(ROUTE, expiring(timedelta(hours=1)))
    await cached.call("lease", "crm", "alice")
    now.at -= S
    await cached.call("lease", "crm", "alice")
    assert len(evergrant.seen) == 2


async def test_a_token_is_not_served_up_to_its_expiry(cached: Caller, evergrant: ScriptedEvergrant, now: Now):
    evergrant.script(ROUTE, expiring(20 * S), expiring(60 * S, generation=8))
    await cached.call("lease", "crm", "alice")
    now.at += 17.9 * S
    assert (await cached.call("lease", "crm", "alice")).generation == 7
    now.at += 0.1 * S  # a tenth of what it had is left
    assert (await cached.call("lease", "crm", "alice")).generation == 8


async def test_min_ttl_is_judged_when_it_is_served(cached: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, expiring(600 * S))
    await cached.call("lease", "crm", "alice")
    await cached.call("lease", "crm", "alice", min_ttl=599 * S)
    assert len(evergrant.seen) == 1
    await cached.call("lease", "crm", "alice", min_ttl=601 * S)
    assert len(evergrant.seen) == 2


async def test_a_clock_that_is_late_serves_no_expired_token(
    cached: Caller, evergrant: ScriptedEvergrant, now: Now
):
    """The server says what time it is (RFC 9110 section 6.6.1); this machine is an hour behind it."""
    date = {"date": format_datetime(START + timedelta(hours=1), usegmt=True)}
    body = expiring(timedelta(hours=1) + 20 * S).body
    evergrant.script(ROUTE, ScriptedResponse(200, body, date))
    await cached.call("lease", "crm", "alice")
    now.at += 16 * S
    await cached.call("lease", "crm", "alice")
    assert len(evergrant.seen) == 1
    now.at += S
    await cached.call("lease", "crm", "alice")
    assert len(evergrant.seen) == 2


async def test_a_missing_consent_is_asked_for_again(cached: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, consent_required(), expiring(timedelta(hours=1)))
    with pytest.raises(ReconnectNeeded) as needed:
        await cached.call("token", "crm", "alice")
    assert (needed.value.connect_url, needed.value.code) == (LINK, "consent_required")
    assert LINK not in str(needed.value)
    assert isinstance(await cached.call("lease", "crm", "alice"), Lease)


@pytest.mark.parametrize(("name", "arguments"), [("revoke", ("left",)), ("refresh", ())])
async def test_what_this_client_changes_it_forgets(
    cached: Caller, evergrant: ScriptedEvergrant, name: str, arguments: tuple[str, ...]
):
    evergrant.script(ROUTE, expiring(timedelta(hours=1)))
    evergrant.script(
        f"POST /v1/connections/con_1/{name}", ScriptedResponse(202, connection(state="revoking"))
    )
    await cached.call("lease", "crm", "alice")
    await cached.call(name, "con_1", *arguments)
    await cached.call("lease", "crm", "alice")
    assert [it.path for it in evergrant.seen].count("/v1/lease") == 2


async def test_nothing_is_kept_when_it_is_not_wanted(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client:
        await client.lease("crm", "alice")
        await client.lease("crm", "alice")
    assert len(evergrant.seen) == 2
    with pytest.raises(ValueError, match="cache_leases_for"):
        Evergrant(evergrant.url, "key", cache_leases_for=-S)


async def test_tasks_that_ask_at_once_share_one_call(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client:
        answers = await asyncio.gather(*(client.lease("crm", "alice") for _ in range(50)))
        assert len({id(it) for it in answers}) == 1
        assert len(evergrant.seen) == 1


async def test_a_task_that_gives_up_ends_only_itself(evergrant: ScriptedEvergrant):
    evergrant.script(ROUTE, lease())
    async with AsyncEvergrant(evergrant.url, "key") as client:
        first = asyncio.create_task(client.lease("crm", "alice"))
        second = asyncio.create_task(client.lease("crm", "alice"))
        await asyncio.sleep(0)
        first.cancel()
        assert isinstance(await second, Lease)
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(evergrant.seen) == 1


async def test_threads_that_ask_at_once_share_one_call_or_its_failure(evergrant: ScriptedEvergrant):
    """The server keeps the first one waiting until all of them have asked."""
    evergrant.script(ROUTE, problem(503, "ProviderUnavailable", "provider_error", retry_after=0.5), lease())
    with (
        ThreadPoolExecutor(8) as pool,
        Evergrant(evergrant.url, "key", cache_leases_for=timedelta(0)) as client,
    ):
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(loop.run_in_executor(pool, client.lease, "crm", "alice") for _ in range(8))
        )
    assert len({id(it) for it in answers}) == 1
    assert len(evergrant.seen) == 2  # one call, its first attempt refused
    evergrant.script(ROUTE, problem(503, "ProviderUnavailable", "provider_error", retry_after=3600))
    with Evergrant(evergrant.url, "key") as client, pytest.raises(ProviderUnavailable):
        await asyncio.to_thread(client.lease, "crm", "alice")


class TestLeaseCache:
    KEY = CacheKey("crm", "alice", "default", None)

    def test_what_was_forgotten_meanwhile_is_not_kept(self, now: Now):
        cache = LeaseCache(30 * S, now)
        asked = cache.begin_request()
        cache.invalidate("con_1")
        cache.store(self.KEY, leased(), asked, None)
        assert cache.get(self.KEY, None) is None

    def test_forgetting_old_generations_keeps_newer_ones(self, now: Now):
        cache = LeaseCache(30 * S, now)
        cache.store(self.KEY, leased(generation=8), cache.begin_request(), None)
        cache.invalidate("con_1", 7)
        assert cache.get(self.KEY, None) is not None
        cache.invalidate("con_1", 8)
        assert cache.get(self.KEY, None) is None

    def test_its_repr_and_that_of_its_lease_have_no_token(self, now: Now):
        cache = LeaseCache(30 * S, now)
        cache.store(self.KEY, leased(), cache.begin_request(), None)
        assert TOKEN not in repr(vars(cache))

    @given(
        lifetime=st.floats(0, 100),
        waited=st.floats(0, 50),
        passed=st.floats(0, 200),
        bound=st.floats(0, 100),
        least=st.none() | st.floats(0, 100),
    )
    def test_served_means_valid_young_and_long_enough(
        self, lifetime: float, waited: float, passed: float, bound: float, least: float | None
    ):
        now = Now()
        cache = LeaseCache(bound * S, now)
        asked = cache.begin_request()
        now.at += waited * S
        cache.store(self.KEY, leased(START + lifetime * S), asked, None)
        now.at += passed * S
        served = cache.get(self.KEY, None if least is None else least * S)
        if served is not None:
            assert served.expires_at is not None
            assert now.at < served.expires_at
            assert served.expires_at - now.at >= (least or 0) * S
            assert now.at - START < bound * S


def leased(expires_at: datetime | None = None, generation: int = 1) -> Lease:
    return Lease(
        TOKEN,
        token_type="Bearer",
        expires_at=expires_at,
        scopes=(),
        generation=generation,
        connection_id="con_1",
    )
