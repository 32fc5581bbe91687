"""Callers that lease and callers that refresh, in a process of their own, who note when each answer came.

`python -m tests.faults.failover.load` reads its order as one line of JSON, works until its standard input
ends, and then writes what it has noted as one line of JSON. Moments are of the host's monotonic clock.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field

from tests.faults.rotation.load import Caller, Cut, Order

_PAUSE_S = 0.2  # of a caller that was told no time
_REFRESH_PAUSE_S = 1.0


@dataclass
class Notes:
    """What the callers saw. A lease is the moment of its answer and its trace, which its record names."""

    leases: list[tuple[float, str]] = field(default_factory=list)
    refreshes: list[float] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)  # other than 200, by status and code
    cut: int = 0
    failed: list[str] = field(default_factory=list)

    def count(self, status: int, code: str) -> None:
        name = f"{status} {code}"
        self.answers[name] = self.answers.get(name, 0) + 1


class _Callers:
    def __init__(self, order: Order, notes: Notes, over: asyncio.Event) -> None:
        self._order, self._notes, self._over = order, notes, over
        self._subjects = sorted(order.tokens)

    async def lease(self, number: int) -> None:
        """One caller's life: a lease, a pause; after a refusal it waits as long as it was told."""
        chance = random.Random(f"{self._order.seed} caller {number}")
        caller = Caller(self._order, self._order.key, chance)
        await asyncio.sleep(chance.uniform(0, self._order.pause_s))
        while not self._over.is_set():
            body = {"integration": "crm", "subject": chance.choice(self._subjects)}
            trace = f"{chance.getrandbits(128):032x}"
            pause_s = _PAUSE_S
            try:
                status, told_s, answer = await caller.post("/v1/lease", body, trace)
            except Cut:
                self._notes.cut += 1
            else:
                if status == 200:
                    self._notes.leases.append((time.monotonic(), trace))
                    pause_s = self._order.pause_s
                else:
                    self._notes.count(status, answer.get("code", ""))
                    pause_s = told_s or _PAUSE_S
            await asyncio.sleep(pause_s * chance.uniform(0.5, 1.5))

    async def refresh(self, connection: str, seen: int) -> None:
        """One caller's life, who wants a newer token again and again."""
        chance = random.Random(f"{self._order.seed} {connection}")
        caller = Caller(self._order, self._order.admin_key, chance)
        while not self._over.is_set():
            await asyncio.sleep(_REFRESH_PAUSE_S * chance.uniform(0.5, 1.5))
            try:
                path = f"/v1/connections/{connection}/refresh"
                status, _, body = await caller.post(path, {"generation": seen})
            except Cut:
                self._notes.cut += 1
                continue
            if status != 200:
                self._notes.count(status, body.get("code", ""))
            elif body["generation"] > seen:
                self._notes.refreshes.append(time.monotonic())
                seen = body["generation"]


async def run(order: Order) -> Notes:
    """Work until the standard input ends."""
    notes, over = Notes(), asyncio.Event()
    callers = _Callers(order, notes, over)
    tasks = [asyncio.create_task(callers.lease(number)) for number in range(order.readers)]
    tasks += [asyncio.create_task(callers.refresh(id, seen)) for id, seen in order.refreshing.items()]
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: over.set())
    await over.wait()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    notes.failed += [repr(result) for result in results if isinstance(result, BaseException)]
    return notes


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Order(**json.loads(sys.stdin.readline())))))), flush=True)
