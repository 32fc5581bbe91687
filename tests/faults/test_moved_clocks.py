"""Hosts whose clocks are an hour apart: nothing is sent twice, nobody waits an hour or is condemned."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from evergrant_server.core.attempt import Limits
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.provider import RefreshRules, Rotation
from tests.fakes.installation import Installation
from tests.fakes.scripted_provider import ScriptedProvider, drop, ok
from tests.faults.test_review_takeover import Activities

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


async def test_a_host_that_was_ahead_and_died_is_waited_for_as_any_other_is(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Its attempt's deadlines lie an hour ahead of what the others' clocks say."""
    connection = await place.connect(idp, STRICT)
    limits = Limits(send=timedelta(seconds=0.3), answer=timedelta(seconds=0.3))
    died = worker(place, idp, tmp_path / "one", Off(HOUR), limits=limits)
    other = worker(place, idp, tmp_path / "other", Off(timedelta(0)), limits=limits)
    idp.script(drop())
    assert (await died.refresh(connection, 1)).failure is Code.PROVIDER_UNREACHABLE
    assert (await other.refresh(connection, 1, token_over=True)).failure is Code.REFRESH_PENDING
    await place.revoke(connection, tell=False)
    assert (await other.revoke(connection)).failure is Code.REFRESH_PENDING
    await asyncio.sleep(0.7)
    assert (await other.revoke(connection)).revocation is not None


async def test_a_token_that_is_over_is_sent_again_after_a_host_that_was_ahead(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    limits = Limits(send=timedelta(seconds=0.3), answer=timedelta(seconds=0.3))
    died = worker(place, idp, tmp_path / "one", Off(HOUR), limits=limits)
    other = worker(place, idp, tmp_path / "other", Off(timedelta(0)), limits=limits)
    idp.script(drop())
    await died.refresh(connection, 1)
    assert (await other.refresh(connection, 1, token_over=True)).failure is Code.REFRESH_PENDING
    await asyncio.sleep(0.7)
    assert (await other.refresh(connection, 1, token_over=True)).generation == 2


@pytest.mark.parametrize("off", [HOUR, timedelta(0)], ids=["ahead", "right"])
async def test_a_worker_that_is_ahead_condemns_nobody_whose_token_is_good(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, off: timedelta
):
    """It can't be refreshed: once it is over the subject has to consent again, and no sooner."""
    idp.script(ok(refresh_token=None, expires_in=3600))
    connection = await place.connect(idp)
    clock = Off(off)
    ahead = worker(place, idp, tmp_path / "here", clock)
    for later, state in ((timedelta(0), State.ACTIVE), (HOUR, State.NEEDS_REAUTH)):
        clock.by = off + later
        await ahead.refresh(connection, 1, at_temporal(datetime.now(UTC) + later))
        assert (await place.row(connection)).state is state


def at_temporal(now: datetime) -> ActivityEnvironment:
    env = ActivityEnvironment()
    env.info = replace(env.info, started_time=now)
    return env
