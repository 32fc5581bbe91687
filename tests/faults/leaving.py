"""Workers with limits of a second, on a machine that may stand still for longer: asked until it is sent."""

import asyncio
from collections.abc import Awaitable, Callable

from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import GrantNews
from tests.fakes.scripted_provider import ScriptedProvider

Ask = Callable[[], Awaitable[GrantNews]]


async def left(idp: ScriptedProvider, ask: Ask) -> "asyncio.Task[GrantNews]":
    """Ask, and return once a request has arrived; what `ask` brings comes later."""
    arrived = asyncio.create_task(idp.until("token", idp.count("token") + 1, timeout=30))
    while True:
        asked = asyncio.ensure_future(_asked(ask))
        await asyncio.wait({asked, arrived}, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            await arrived
            return asked
        await asyncio.sleep(0.05)
        assert _waits(asked), f"it ended before it was sent: {asked.exception() or asked.result()}"


async def outcome(ask: Ask) -> GrantNews:
    """Ask until there is nothing to wait for any more."""
    async with asyncio.timeout(30):
        while True:
            asked = asyncio.ensure_future(_asked(ask))
            await asyncio.wait({asked})
            if not _waits(asked):
                return await asked
            await asyncio.sleep(0.05)


async def _asked(ask: Ask) -> GrantNews:
    return await ask()


def _waits(asked: "asyncio.Task[GrantNews]") -> bool:
    error = asked.exception()
    said = error.code if isinstance(error, Failure) else asked.result().failure if error is None else None
    return said is Code.REFRESH_PENDING
