"""Polls the connections whose refresh this process waits for: one query a tick for all of them.

A caller of each would have to ask on its own otherwise: 2,000 of them 26,000 times a second while Temporal
is away.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store import ConnectionPosition, LeaseRows
from evergrant_server.telemetry import saturation

POLL_INTERVAL_S = 0.075
_LONGEST_PAUSE_S = 1.0  # of one connection; Temporal's answer is what comes first as a rule
_GROWTH = 1.5
_MOST_AT_ONCE = 500  # connections in one query


@dataclass(eq=False)
class _Watched:
    """A connection that is polled at `next_at` (the loop's time) and then less and less often."""

    tenant: Tenant
    connection_id: ConnectionId
    seen: int
    next_at: float
    over: asyncio.Future[None]
    pause_s: float = POLL_INTERVAL_S

    def judge(self, position: ConnectionPosition | None, now: float) -> None:
        """End the wait where nothing newer will come: a newer generation, or a state without refresh."""
        active = position is not None and position.state == LifecycleState.ACTIVE
        waits = position is not None and active and position.generation <= self.seen
        if not waits and not self.over.done():
            self.over.set_result(None)
        self.pause_s = min(self.pause_s * _GROWTH, _LONGEST_PAUSE_S)
        self.next_at = now + self.pause_s


class PositionPoller:
    """One query at a time, on a connection to the database of its own. Polls while anything is watched."""

    def __init__(self, rows: LeaseRows) -> None:
        self._rows = rows
        self._watched: set[_Watched] = set()
        self._task: asyncio.Task[None] | None = None

    async def wait_until_over(self, tenant: Tenant, connection_id: ConnectionId, seen: int) -> None:
        """Return once the connection has a newer generation than `seen`, or a state without refresh."""
        loop = asyncio.get_running_loop()
        watched = _Watched(tenant, connection_id, seen, loop.time() + POLL_INTERVAL_S, loop.create_future())
        self._watched.add(watched)
        saturation.REFRESHES_WAITING.set(len(self._watched))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._poll())
        try:
            await watched.over
        finally:
            self._watched.discard(watched)
            saturation.REFRESHES_WAITING.set(len(self._watched))

    async def stop(self) -> None:
        """End the polling; what still waits is not answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while self._watched:
            await asyncio.sleep(POLL_INTERVAL_S)
            due = [it for it in self._watched if it.next_at <= loop.time()]
            for start in range(0, len(due), _MOST_AT_ONCE):
                await self._poll_batch(due[start : start + _MOST_AT_ONCE])

    async def _poll_batch(self, batch: Sequence[_Watched]) -> None:
        with suppress(Failure):  # the store is away: the next tick asks again
            found = await self._rows.positions(sorted({it.connection_id for it in batch}))
            now = asyncio.get_running_loop().time()
            for watched in batch:
                watched.judge(found.get((watched.tenant, watched.connection_id)), now)
