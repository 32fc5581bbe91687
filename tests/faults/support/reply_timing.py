"""Workers with limits of a second, on a machine that may stand still for longer: asked until it is sent."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import Answer, ScriptedProvider, error, hold_answer
from tests.faults.support.activities import Activities

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


class Slow:
    """A worker on another host that has sent, and whose answer doesn't come."""

    def __init__(self, place: Installation, limits: TimeLimits = SHORT, **reply: Any) -> None:
        self._idp = place.idp
        self._gate = asyncio.Event()
        self._answer = replace(hold_answer(self._gate), fields=reply)
        self.worker = Activities(place, "elsewhere", limits)
        self._asked: asyncio.Task[GrantResult] | None = None

    async def refreshes(self, connection: Connection) -> None:
        await self._asks(partial(self.worker.refresh, connection, connection.generation))

    async def is_overtaken(self, place: Installation, connection: Connection, consent: Consent) -> None:
        """It exchanges a code; another host takes over, and is refused."""
        await self._asks(partial(self.worker.exchange, connection, consent), error("invalid_grant"))
        ask = partial(Activities(place, "quick", SHORT).exchange, connection, consent)
        with fails(ErrorCode.REFRESH_PENDING):
            await ask()
        assert (await outcome(ask)).failure is ErrorCode.OUTCOME_UNKNOWN

    async def _asks(self, ask: Ask, *then: Answer) -> None:
        self._idp.script(self._answer, *then)
        self._asked = await left(self._idp, ask)

    async def answered(self) -> GrantResult:
        assert self._asked is not None
        self._gate.set()
        return await self._asked
