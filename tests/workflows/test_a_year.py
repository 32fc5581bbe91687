"""A year of one connection: calls at the provider and history events, printed and asserted as counts."""

from datetime import timedelta

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from tests.workflows.year import DAY, HOUR, Provider, events_of, living_with, pass_by, skipping

OUTAGE = (100 * DAY, 100 * DAY + 12 * HOUR)
QUARTER = (180 * DAY, 271 * DAY)


def away(passed: timedelta) -> bool:
    return OUTAGE[0] <= passed < OUTAGE[1]


def leased(passed: timedelta) -> bool:
    return not QUARTER[0] <= passed < QUARTER[1]


@pytest.mark.soak
async def test_a_year_with_an_outage_and_an_idle_quarter():
    """Hourly tokens, leased all the time but for a quarter; the refresh token lives 90 days from each use."""
    async with skipping() as env:
        provider = Provider(away=away, leased=leased, refresh_lives=90 * DAY)
        async with living_with(env, provider, "adaptive") as life:
            first_run = (await life.handle.describe()).run_id
            await pass_by(env, QUARTER[1])
            idle = [it for it in provider.sent if QUARTER[0] + HOUR <= it]
            woken = await life.describe()
            fresh = await life.ensure_fresh(woken.generation)
            assert fresh.problem is None, "the quarter has not cost the grant"
            await pass_by(env, 365 * DAY - QUARTER[1])
            assert (await life.describe()).state is LifecycleState.ACTIVE
            events, runs = await events_of(env.client, life.handle, first_run)
    during = [it for it in provider.sent if away(it)]
    print(
        f"\na year: {len(provider.sent)} calls at the provider ({len(during)} in an outage of 12 hours, "
        f"{len(idle)} in an idle quarter), {events} history events in {runs} runs"
    )
    busy = (365 * DAY - (QUARTER[1] - QUARTER[0]) - 12 * HOUR) / HOUR
    assert len(during) <= 15
    assert 1 <= len(idle) <= 4, "kept alive"
    # every 55 minutes or so: an hour less the margin and its spread
    assert busy <= len(provider.sent) <= busy * 60 / 53
    assert events <= 13 * len(provider.sent) + 10 * runs + 400
    assert not provider.announced
