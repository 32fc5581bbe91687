"""Hosts whose clocks are an hour apart: no token is sent twice, no worker waits an hour, no grant ends."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from tests.fakes.platform.installation import STRICT, Installation
from tests.fakes.providers.scripted_provider import ok
from tests.faults.support.activities import Activities, at_temporal

HOUR = timedelta(hours=1)


class Off:
    """A clock that is wrong."""

    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


def worker(place: Installation, host: str, clock: Off, **more: Any) -> Activities:
    return Activities(place, host, clock=clock, **more)


@pytest.mark.parametrize("off", [HOUR, timedelta(0)], ids=["ahead", "right"])
async def test_a_fast_clock_ends_no_valid_grant(place: Installation, off: timedelta):
    """It can't be refreshed: once it is over the subject has to consent again, and no sooner."""
    place.idp.script(ok(refresh_token=None, expires_in=3600))
    connection = await place.connect()
    clock = Off(off)
    ahead = worker(place, "here", clock)
    for later, state in ((timedelta(0), LifecycleState.ACTIVE), (HOUR, LifecycleState.NEEDS_REAUTH)):
        clock.by = off + later
        await ahead.refresh(connection, 1, at_temporal(datetime.now(UTC) + later))
        assert (await place.row(connection)).state is state


@pytest.mark.parametrize(
    ("sender", "finder"), [(timedelta(0), HOUR + timedelta(minutes=1)), (-HOUR, timedelta(0))]
)
async def test_clock_skew_sends_no_token_that_is_in_flight(
    place: Installation, sender: timedelta, finder: timedelta
):
    """The one that finds the other's attempt is ahead of it; its deadline isn't over by Temporal's clock."""
    connection = await place.connect(STRICT)
    one = worker(place, "one", Off(sender))
    other = worker(place, "other", Off(finder))
    async with place.idp.in_flight(one.refresh(connection, 1, token_over=True)) as first:
        assert (await other.refresh(connection, 1, token_over=True)).failure is ErrorCode.REFRESH_PENDING
        assert place.idp.count("token", grant_type="refresh_token") == 1
    assert (await first).generation == 2


@pytest.mark.parametrize("first", [True, False], ids=["code exchange", "refresh"])
async def test_expiry_is_dated_by_the_middle_one_of_three_clocks(place: Installation, first: bool):
    """The worker's is ahead; Temporal's and the provider's are right."""
    ahead = worker(place, "here", Off(HOUR / 2))
    says_its_hour = replace(ok(expires_in=3600), headers={"Date": formatdate(usegmt=True)})
    if first:
        connection = await place.begin()
        consent = await place.consent(connection, tell=False)
        place.idp.script(says_its_hour)
        await ahead.exchange(connection, consent)
    else:
        connection = await place.connect()
        place.idp.script(says_its_hour)
        await ahead.refresh(connection, 1)
    _, grant = await place.grant(connection)
    assert grant.expires_at is not None
    assert abs(grant.expires_at - datetime.now(UTC) - HOUR) < timedelta(minutes=1)
