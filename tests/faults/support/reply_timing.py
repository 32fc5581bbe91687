"""Workers with limits of a second, on a machine that may stand still for longer: asked until it is sent."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.scripted_provider import ScriptedProvider

SHORT = TimeLimits(
    send=timedelta(seconds=1.2), answer=timedelta(seconds=0.5), poll_interval=timedelta(seconds=0.2)
)

Ask = Callable[[], Coroutine[Any, Any, GrantResult]]


async def left(idp: ScriptedProvider, ask: Ask) -> "asyncio.Task[GrantResult]":
    """Ask, and return once a request has arrived; what `ask` brings comes later."""
    arrived = asyncio.create_task(idp.until("token", idp.count("token") + 1, timeout=PATIENCE_S))
    while True:
        asked = asyncio.create_task(ask())
        await asyncio.wait({asked, arrived}, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            await arrived
            return asked
        # a machine that stood still made no connection in time: that was no use either
        assert _waits(asked, ErrorCode.PROVIDER_UNREACHABLE), (
            f"it ended before it was sent: {asked.exception() or asked.result()}"
        )
        await asyncio.sleep(0.05)


async def outcome(ask: Ask) -> GrantResult:
    """Ask until there is nothing to wait for any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            asked = asyncio.create_task(ask())
            await asyncio.wait({asked})
            if not _waits(asked):
                return await asked
            await asyncio.sleep(0.05)


def _waits(asked: "asyncio.Task[GrantResult]", *more: ErrorCode) -> bool:
    error, nothing_yet = asked.exception(), (ErrorCode.REFRESH_PENDING, *more)
    if error is not None:
        return isinstance(error, Failure) and error.code in nothing_yet
    return asked.result().failure in nothing_yet
