"""Invariant 5: a token that is valid is served, whatever the refresh is doing."""

import asyncio
import time

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import Api


@pytest.mark.parametrize(
    "problem",
    [
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.PROVIDER_RATE_LIMITED,
        ErrorCode.CLIENT_REJECTED,
        ErrorCode.REPLY_UNREADABLE,
        ErrorCode.STORE_UNAVAILABLE,
    ],
)
async def test_a_failing_refresh_withholds_nothing(api: Api, problem: ErrorCode):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    api.refreshes_fail(problem, retry_after=30)
    api.clock.advance(3590)
    for body in ({}, {"min_ttl": 1800}):
        answer = await api.lease(key, **body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["access_token"] == "at-1"
    api.clock.advance(11)
    assert (await api.lease(key)).json()["code"] == problem


@pytest.mark.parametrize("up", [False, True])
async def test_temporal_away_and_a_refresh_that_hangs_withhold_nothing(api: Api, up: bool):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    api.link.up = up
    api.refreshes_with("unused", after=asyncio.Event())
    api.clock.advance(3590)
    api.app.state.refresher._longest = 3600  # a lease that waited for it would be refused before
    assert (await api.lease(key)).status_code == 200
    api.app.state.refresher._longest = 0.5
    assert (await api.lease(key, min_ttl=1800)).json()["access_token"] == "at-1"


async def test_a_refused_refresh_token_leaves_the_access_token_good(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    api.clock.advance(3601)
    assert (await api.lease(key)).json()["code"] == "consent_required"


async def test_a_provider_that_is_down_is_not_stormed(api: Api):
    """Leases of a due token start one refresh, not one each, and none while it just failed."""
    _, key = await api.active_for("pipeline", Action.TOKEN)
    api.refreshes_fail(ErrorCode.PROVIDER_RATE_LIMITED, retry_after=60)
    api.clock.advance(3500)
    for _ in range(10):
        assert (await api.lease(key)).status_code == 200
        await asyncio.gather(*api.app.state.refresher._running.values())
    assert len(api.link.asked) == 1
    api.app.state.refresher.elapsed = lambda: time.monotonic() + 61
    assert (await api.lease(key)).status_code == 200
    await asyncio.gather(*api.app.state.refresher._running.values())
    assert len(api.link.asked) == 2
