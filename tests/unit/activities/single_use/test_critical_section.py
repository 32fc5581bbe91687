"""Sections at shutdown: finished where that is possible, and cut where the store doesn't come back."""

import asyncio
from datetime import timedelta

import pytest

from activities.single_use.attempt_tracker import CriticalSections
from evergrant_server.core.ids import AttemptId


async def for_ever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def test_a_section_that_waits_for_the_store_is_cancelled_at_the_limit(caplog: pytest.LogCaptureFixture):
    sections, ended = CriticalSections(), list[str]()
    waits = asyncio.create_task(sections.run(AttemptId("att_1"), for_ever(ended, "one")))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await sections.drain(timedelta(seconds=0.05))
    assert ended == ["one"]
    (said,) = caplog.records
    assert "shutdown; the next sweep replays it" in said.getMessage()
    assert "att_1" in set(map(str, said.__dict__.values()))
    assert not sections.in_flight(AttemptId("att_1"))
    with pytest.raises(asyncio.CancelledError):
        await waits


async def test_drain_waits_for_a_section_within_the_limit():
    sections, gate = CriticalSections(), asyncio.Event()
    running = asyncio.create_task(sections.run(AttemptId("att_1"), gate.wait()))
    await asyncio.sleep(0)
    draining = asyncio.create_task(sections.drain(timedelta(seconds=60)))
    await asyncio.sleep(0)
    assert not draining.done()
    gate.set()
    await draining
    assert await running is True
