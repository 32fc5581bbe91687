"""What one app with 500 requests open costs another: its latencies beside that app, and without it."""

import asyncio
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.bounds import Bounds
from bench.installation import Installation
from bench.processes import Generator, first_refusal, load_generator

GREEDY_CLIENTS = 500
CLIENTS = (1, 16)  # of the other app
_ROUNDS = 3
_BEFORE_S = 1.0  # until the greedy app's first requests are answered


@dataclass(frozen=True)
class Neighbour:
    """The other app's 99th percentile in milliseconds, one of each round, and the greedy app's rate.

    `quiet`: alone. `busy`: while the same 500 clients load another server on this machine, which costs the
    cores alike. `beside`: while they are the greedy app's.
    """

    clients: int
    quiet: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    greedy: list[dict[str, Any]] = field(default_factory=list)

    @property
    def greedy_per_second(self) -> float:
        return sum(len(each["latencies"]) for each in self.greedy) / sum(
            each["seconds"] for each in self.greedy
        )

    def ratio_to(self, p99s: list[float]) -> float:
        """Of the medians of the rounds."""
        return median(self.beside) / median(p99s)


async def measure(
    ready: Installation, bare_port: int, generator: Generator, bounds: Bounds
) -> list[Neighbour]:
    """Alternate rounds of the other app alone with rounds beside the clients, at either server."""
    rows = [Neighbour(clients) for clients in CLIENTS]
    async with load_generator() as crowd:
        for row in rows:
            for _ in range(_ROUNDS if bounds.most >= GREEDY_CLIENTS else 1):
                row.quiet.append(_p99(await _round(generator, ready, row.clients, bounds)))
                for port, p99s in ((bare_port, row.busy), (ready.settings.port, row.beside)):
                    crowded = asyncio.create_task(_crowd(crowd, ready, port, bounds))
                    await asyncio.sleep(min(_BEFORE_S, bounds.seconds))
                    p99s.append(_p99(await _round(generator, ready, row.clients, bounds)))
                    loaded = await crowded
                row.greedy.append(loaded)
    return rows


async def _round(generator: Generator, ready: Installation, clients: int, bounds: Bounds) -> dict[str, Any]:
    seconds, requests = bounds.seconds / _ROUNDS, ready.requests(ready.other_key)
    port = ready.settings.port
    result = await generator.round(
        port=port, clients=clients, seconds=seconds, most=bounds.most, requests=requests
    )
    if result["refused"]:
        raise RuntimeError(f"the other app was refused: {first_refusal([result])}")
    return result


async def _crowd(crowd: Generator, ready: Installation, port: int, bounds: Bounds) -> dict[str, Any]:
    seconds = bounds.seconds / _ROUNDS + min(_BEFORE_S, bounds.seconds) + 0.5
    most = max(bounds.most, GREEDY_CLIENTS)
    return await crowd.round(
        port=port,
        clients=GREEDY_CLIENTS,
        seconds=seconds,
        most=most,
        requests=ready.requests(),
    )


def _p99(result: dict[str, Any]) -> float:
    latencies = sorted(result["latencies"])  # one, perhaps, in a quick run
    return latencies[int(len(latencies) * 0.99)] * 1000
