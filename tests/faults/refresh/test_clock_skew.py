"""Hosts whose clocks are an hour apart: no token is sent twice, no worker waits an hour, no grant ends."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, drop, hold_answer, ok
from tests.faults.support.activities import Activities, at_temporal

STRICT = RefreshRules(rotation=Rotation.STRICT)
HOUR = timedelta(hours=1)


class Off:
    """A clock that is wrong."""

    def __init__(self, by: timedelta) -> None:
        self.by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


def worker(place: Installation, idp: ScriptedProvider, folder: Path, clock: Off, **more: Any) -> Activities:
    return Activities(place, (idp.allowance,), folder, clock=clock, **more)


async def test_the_wait_for_a_dead_host_ignores_its_fast_clock(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Its attempt's deadlines lie an hour ahead of what the others' clocks say."""
    connection = await place.connect(idp, STRICT)
    limits = TimeLimits(send=timedelta(seconds=2), answer=timedelta(seconds=0.3))
    died = worker(place, idp, tmp_path / "one", Off(HOUR), limits=limits)
    other = worker(place, idp, tmp_path / "other", Off(timedelta(0)), limits=limits)
    idp.script(drop())
    assert (await died.refresh(connection, 1)).failure is ErrorCode.PROVIDER_UNREACHABLE
    assert (await other.refresh(connection, 1, token_over=True)).failure is ErrorCode.REFRESH_PENDING
    await place.revoke(connection, tell=False)
    assert (await other.revoke(connection)).failure is ErrorCode.REFRESH_PENDING
    await asyncio.sleep(2.4)
    assert (await other.revoke(connection)).revocation is not None


async def test_an_expired_token_is_sent_again_after_a_host_with_a_fast_clock_died(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    limits = TimeLimits(send=timedelta(seconds=2), answer=timedelta(seconds=0.3))
    died = worker(place, idp, tmp_path / "one", Off(HOUR), limits=limits)
    other = worker(place, idp, tmp_path / "other", Off(timedelta(0)), limits=limits)
    idp.script(drop())
    await died.refresh(connection, 1)
    assert (await other.refresh(connection, 1, token_over=True)).failure is ErrorCode.REFRESH_PENDING
    await asyncio.sleep(2.4)
    assert (await other.refresh(connection, 1, token_over=True)).generation == 2


@pytest.mark.parametrize("off", [HOUR, timedelta(0)], ids=["ahead", "right"])
async def test_a_fast_clock_ends_no_valid_grant(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, off: timedelta
):
    """It can't be refreshed: once it is over the subject has to consent again, and no sooner."""
    idp.script(ok(refresh_token=None, expires_in=3600))
    connection = await place.connect(idp)
    clock = Off(off)
    ahead = worker(place, idp, tmp_path / "here", clock)
    for later, state in ((timedelta(0), LifecycleState.ACTIVE), (HOUR, LifecycleState.NEEDS_REAUTH)):
        clock.by = off + later
        await ahead.refresh(connection, 1, at_temporal(datetime.now(UTC) + later))
        assert (await place.row(connection)).state is state


@pytest.mark.parametrize(
    ("sender", "finder"), [(timedelta(0), HOUR + timedelta(minutes=1)), (-HOUR, timedelta(0))]
)
async def test_clock_skew_sends_no_token_that_is_in_flight(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, sender: timedelta, finder: timedelta
):
    """The one that finds the other's attempt is ahead of it; its deadline isn't over by Temporal's clock."""
    connection = await place.connect(idp, STRICT)
    one = worker(place, idp, tmp_path / "one", Off(sender))
    other = worker(place, idp, tmp_path / "other", Off(finder))
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    first = asyncio.create_task(one.refresh(connection, 1, token_over=True))
    await idp.until("token", 2)
    assert (await other.refresh(connection, 1, token_over=True)).failure is ErrorCode.REFRESH_PENDING
    assert idp.count("token", grant_type="refresh_token") == 1
    gate.set()
    assert (await first).generation == 2


@pytest.mark.parametrize("first", [True, False], ids=["code exchange", "refresh"])
async def test_expiry_is_dated_by_the_middle_one_of_three_clocks(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, first: bool
):
    """The worker's is ahead; Temporal's and the provider's are right."""
    ahead = worker(place, idp, tmp_path / "here", Off(HOUR / 2))
    says_its_hour = replace(ok(expires_in=3600), headers={"Date": formatdate(usegmt=True)})
    if first:
        integration = await place.integration(idp)
        connection = await place.begin(integration)
        consent = await place.consent(idp, integration, connection, tell=False)
        idp.script(says_its_hour)
        await ahead.exchange(connection, consent)
    else:
        connection = await place.connect(idp)
        idp.script(says_its_hour)
        await ahead.refresh(connection, 1)
    _, grant = await place.grant(connection)
    assert grant.expires_at is not None
    assert abs(grant.expires_at - datetime.now(UTC) - HOUR) < timedelta(minutes=1)
