"""A bounded number of turns that several parties share, so that none of them takes all.

A turn is an update that the API has open at Temporal, or an activity in which a worker calls a
provider. A party whose calls hang keeps the turns it holds, and leaves the others theirs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

_Part = tuple[str, str]  # of a party
_Queue = dict[asyncio.Future[None], None]  # in order of arrival


class FairTurns:
    """`size` turns. A party holds at most as many as are free, and a part of it what that leaves.

    So a party alone has half of them, two have a third each; and one part alone has a third, so that
    the party's other parts aren't left without. What waits is served in turn, part by part. Belongs to
    one event loop.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._parties: Counter[str] = Counter()  # how many each holds
        self._parts: Counter[_Part] = Counter()
        self._queues: dict[_Part, _Queue] = {}  # the next to be served first

    def has_turn(self, party: str, part: str = "") -> bool:
        """True when this part would wait for none."""
        return self._parts[party, part] < self._free - self._parties[party]

    @asynccontextmanager
    async def turn(self, party: str, part: str = "", within_s: float | None = None) -> AsyncGenerator[None]:
        """Wait for a turn, and hold it for the block. Raises TimeoutError when none comes in time."""
        key = party, part
        if self.has_turn(*key):  # then none of this part waits: each is served as soon as there is a turn
            self._take(key)
        else:
            async with asyncio.timeout(within_s):
                await self._wait(key)
        try:
            yield
        finally:
            self._give_back(key)

    async def _wait(self, key: _Part) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._queues.setdefault(key, {})
        waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn in waiting:
                self._remove(turn, key)
            elif not turn.cancelled():  # it was given, and its caller has gone
                self._give_back(key)
            raise

    def _take(self, key: _Part) -> None:
        self._free -= 1
        self._parties[key[0]] += 1
        self._parts[key] += 1

    def _give_back(self, key: _Part) -> None:
        self._free += 1
        self._parties[key[0]] -= 1
        self._parts[key] -= 1
        if not self._parts[key]:
            del self._parts[key]
        if not self._parties[key[0]]:
            del self._parties[key[0]]
        while (
            following := next((queue for queue in self._queues if self.has_turn(*queue)), None)
        ) is not None:
            turn = next(iter(self._queues[following]))
            self._remove(turn, following)
            if not turn.cancelled():  # else its caller has gone, and is about to notice
                self._take(following)
                turn.set_result(None)

    def _remove(self, turn: asyncio.Future[None], key: _Part) -> None:
        """Remove one that waits, and put its part behind the others."""
        waiting = self._queues.pop(key)
        del waiting[turn]
        if waiting:
            self._queues[key] = waiting
