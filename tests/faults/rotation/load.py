"""Readers that lease and callers that refresh, in a process of their own, so that they wait for themselves.

`python -m tests.faults.rotation.load` reads its order as one line of JSON, works until its standard input
ends, and then writes what it counted as one line of JSON.

An answer other than 200 that names a time is asked again then, as clients do, until the time of one call is
over: it counts under its code, and the lease has failed only if none followed. A connection that a SIGKILL
has cut is asked again at the next API.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.load import HOST

_CALL_S = 30.0  # of one call with its retries, as of clients
_ANSWER_S = 20.0
_REFRESH_PAUSE_S = 0.5
_CUT_PAUSE_S = 0.05
_MOST_QUOTED = 20


@dataclass
class Order:
    """What the load is: leases of `tokens` by their subjects; None: a token that is refreshed meanwhile."""

    ports: list[int]
    key: str
    admin_key: str
    seed: int
    readers: int
    pause_s: float
    tokens: dict[str, str | None]
    refreshing: dict[str, int]  # the generations of connections that are refreshed, by their ids


@dataclass
class Tally:
    """What the callers saw. `answers` are those that were asked again, by status and code."""

    leases: int = 0
    refreshes: int = 0
    cut: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    refresh_answers: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __add__(self, later: "Tally") -> "Tally":
        return Tally(
            self.leases + later.leases,
            self.refreshes + later.refreshes,
            self.cut + later.cut,
            dict(Counter(self.answers) + Counter(later.answers)),
            dict(Counter(self.refresh_answers) + Counter(later.refresh_answers)),
            self.failed + later.failed,
            max(self.slowest_s, later.slowest_s),
        )


class Cut(Exception):
    """The API is gone, or was before it had answered."""


class Caller:
    """One client, with a connection to each API that it keeps."""

    def __init__(self, order: Order, key: str, chance: random.Random) -> None:
        self._ports, self._key, self._turn = order.ports, key, chance.randrange(len(order.ports))
        self._open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    def next_api(self) -> None:
        self._turn += 1

    async def post(
        self, path: str, body: dict[str, Any], trace: str = ""
    ) -> tuple[int, float | None, dict[str, Any]]:
        """Status, Retry-After and body of the answer. `trace`: the id that its audit record names. Raises
        Cut."""
        port = self._ports[self._turn % len(self._ports)]
        text = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {self._key}\r\n"
        if trace:
            head += f"traceparent: 00-{trace}-{trace[:16]}-01\r\n"
        request = f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._answer(port, request.encode())
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            if port in self._open:
                self._open.pop(port)[1].close()
            raise Cut(type(error).__name__) from None

    async def _answer(self, port: int, request: bytes) -> tuple[int, float | None, dict[str, Any]]:
        if port not in self._open:
            self._open[port] = await asyncio.open_connection(HOST, port)
        reader, writer = self._open[port]
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        retry_after = headers.get("retry-after")
        pause_s = float(retry_after) if retry_after else None
        return int(lines[0].split()[1]), pause_s, json.loads(content or b"{}")


class _Load:
    def __init__(self, order: Order, tally: Tally, over: asyncio.Event) -> None:
        self._order, self._tally, self._over = order, tally, over
        self._subjects = sorted(order.tokens)

    async def read(self, number: int) -> None:
        """One reader's life."""
        chance = random.Random(f"{self._order.seed} reader {number}")
        caller = Caller(self._order, self._order.key, chance)
        await asyncio.sleep(chance.uniform(0, self._order.pause_s))
        while not self._over.is_set():
            subject = chance.choice(self._subjects)
            answer = await self._answered(caller, "/v1/lease", {"integration": "crm", "subject": subject})
            if answer is not None:
                self._tally.leases += 1
                token = self._order.tokens[subject]
                if token is not None and answer["access_token"] != token:
                    self._fail(f"{subject}: another token than its own")
            caller.next_api()
            await asyncio.sleep(self._order.pause_s * chance.uniform(0.5, 1.5))

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
                caller.next_api()
                continue
            if status == 200:
                self._tally.refreshes += body["generation"] > seen
                seen = body["generation"]
            else:
                _count(self._tally.refresh_answers, status, body)

    async def _answered(self, caller: Caller, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The body of a 200; None: there was none within the time of a call, and that is counted."""
        began = time.monotonic()
        while True:
            why = "no API answered"
            try:
                status, pause_s, answer = await caller.post(path, body)
            except Cut:
                self._tally.cut += 1
                pause_s = _CUT_PAUSE_S
            else:
                if status == 200:
                    self._tally.slowest_s = max(self._tally.slowest_s, time.monotonic() - began)
                    return answer
                _count(self._tally.answers, status, answer)
                why = f"{status} {json.dumps(answer)[:300]}"
            if pause_s is None or time.monotonic() - began + pause_s > _CALL_S:
                self._fail(f"{body}: {why}")
                return None
            caller.next_api()
            await asyncio.sleep(pause_s)

    def _fail(self, why: str) -> None:
        self._tally.failed.append(why if len(self._tally.failed) < _MOST_QUOTED else "…")


def _count(answers: dict[str, int], status: int, body: dict[str, Any]) -> None:
    name = f"{status} {body.get('code', 'without a code')}"
    answers[name] = answers.get(name, 0) + 1


async def run(order: Order) -> Tally:
    """Work until the standard input ends."""
    tally, over = Tally(), asyncio.Event()
    load = _Load(order, tally, over)
    tasks = [asyncio.create_task(load.read(number)) for number in range(order.readers)]
    tasks += [asyncio.create_task(load.refresh(id, seen)) for id, seen in order.refreshing.items()]
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: over.set())
    await over.wait()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    tally.failed += [repr(result) for result in results if isinstance(result, BaseException)]
    return tally


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Order(**json.loads(sys.stdin.readline())))))), flush=True)
