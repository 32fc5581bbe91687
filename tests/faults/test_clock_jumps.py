"""Clocks that jump while a credential is being spent. The machine's own count of seconds doesn't."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from evergrant_server.core.attempt import Limits
from evergrant_server.core.clock import SetClock
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.provider import RefreshRules, Rotation
from tests.fakes.installation import Installation
from tests.fakes.scripted_provider import ScriptedProvider, hold_answer
from tests.faults.test_review_takeover import NEVER_ROTATES, Activities

STRICT = RefreshRules(rotation=Rotation.STRICT)
DAY_S = 86_400.0


async def test_a_call_under_way_is_no_stopped_worker_s_because_a_clock_jumped_ahead(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Temporal gives the refresh to another worker of the host while its provider is slow."""
    connection = await place.connect(idp, STRICT)
    clock, gate = SetClock(datetime.now(UTC)), asyncio.Event()
    slow, other = (Activities(place, (idp.allowance,), tmp_path, clock=clock) for _ in range(2))
    idp.script(hold_answer(gate))
    waiting = asyncio.create_task(slow.refresh(connection, 1))
    await idp.until("token", 2)
    clock.advance(DAY_S)
    assert (await other.refresh(connection, 1)).failure is Code.REFRESH_PENDING
    gate.set()
    assert (await waiting).generation == 2
    assert idp.count("token") == 2, "the code, and one refresh"
    assert (await place.row(connection)).state is State.ACTIVE


async def test_a_worker_that_is_stopped_past_every_deadline_is_fenced_off_though_its_clock_went_back(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(lenient, NEVER_ROTATES)
    clock, gate = SetClock(datetime.now(UTC)), asyncio.Event()
    short = Limits(send=timedelta(seconds=1), answer=timedelta(seconds=1))
    stopped, other = (Activities(place, (lenient.allowance,), tmp_path, short, clock=clock) for _ in range(2))
    lenient.script(hold_answer(gate))
    waiting = asyncio.create_task(stopped.refresh(connection, 1))
    await lenient.until("token", 2)
    clock.advance(-3600)
    async with asyncio.timeout(10):
        while (await other.refresh(connection, 1)).failure is Code.REFRESH_PENDING:
            await asyncio.sleep(0.05)
    assert (await place.row(connection)).generation == 2
    gate.set()
    await waiting
    assert (await place.row(connection)).generation == 2
