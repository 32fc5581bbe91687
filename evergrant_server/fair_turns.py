"""A bounded number of turns that several parties share, so that none of them takes all.

The API has as many requests to Temporal open as it has turns, and a worker as many calls to
providers. A party whose calls hang keeps the turns it holds and leaves the others theirs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

_Queue = dict[asyncio.Future[None], None]  # in order of arrival, and each removed in no time


class FairTurns:
    """`size` turns. A party holds at most as many as are free: one alone half of them, two a third each.

    What waits is served in turn, queue by queue. Belongs to one event loop.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: Counter[str] = Counter()
        self._queues: dict[
            tuple[str, str], _Queue
        ] = {}  # by party and its queue, the next to be served first

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, party: str, queue: str = "") -> AsyncGenerator[None]:
        """Wait for a turn, and hold it for the block. Queues of one party share its turns evenly."""
        if self._may_take(party):  # then none of its queues waits: each is served as soon as it may be
            self._take(party)
        else:
            await self._wait(party, queue)
        try:
            yield
        finally:
            self._give_back(party)

    async def _wait(self, party: str, queue: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._queues.setdefault((party, queue), {})
        waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn not in waiting:  # it was given, and its caller has gone
                self._give_back(party)
            else:
                self._remove(turn, (party, queue))
            raise

    def _may_take(self, party: str) -> bool:
        return self._held[party] < self._free

    def _take(self, party: str) -> None:
        self._free -= 1
        self._held[party] += 1

    def _give_back(self, party: str) -> None:
        self._free += 1
        self._held[party] -= 1
        if not self._held[party]:
            del self._held[party]
        while (key := next((it for it in self._queues if self._may_take(it[0])), None)) is not None:
            turn = next(iter(self._queues[key]))
            self._take(key[0])
            self._remove(turn, key)
            turn.set_result(None)

    def _remove(self, turn: asyncio.Future[None], key: tuple[str, str]) -> None:
        """Remove one that waits, and put its queue behind the others."""
        waiting = self._queues.pop(key)
        del waiting[turn]
        if waiting:
            self._queues[key] = waiting
