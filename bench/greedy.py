"""What one app with 500 requests open costs another: its latencies beside that app, and without it."""

import asyncio
from dataclasses import dataclass
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
    """The other app's 99th percentile in milliseconds, one of each round, and the greedy app's rate."""

    clients: int
    quiet: list[float]
    beside: list[float]
    greedy_per_second: float

    @property
    def ratio(self) -> float:
        """Of the medians of the rounds."""
        return sorted(self.beside)[len(self.beside) // 2] / sorted(self.quiet)[len(self.quiet) // 2]


async def measure(ready: Installation, generator: Generator, bounds: Bounds) -> list[Neighbour]:
    """Alternate rounds of the other app alone with rounds beside the greedy one."""
    found: list[Neighbour] = []
    async with load_generator() as crowd:
        for clients in CLIENTS:
            quiet, beside, greedy = [], [], []
            for _ in range(_ROUNDS if bounds.most >= GREEDY_CLIENTS else 1):
                quiet.append(_p99(await _round(generator, ready, clients, bounds)))
                crowded = asyncio.create_task(_crowd(crowd, ready, bounds))
                await asyncio.sleep(min(_BEFORE_S, bounds.seconds))
                beside.append(_p99(await _round(generator, ready, clients, bounds)))
                greedy.append(await crowded)
            rate = sum(len(it["latencies"]) for it in greedy) / sum(it["seconds"] for it in greedy)
            found.append(Neighbour(clients, quiet, beside, rate))
    return found


async def _round(generator: Generator, ready: Installation, clients: int, bounds: Bounds) -> dict[str, Any]:
    seconds, requests = bounds.seconds / _ROUNDS, ready.requests(ready.other_key)
    port = ready.settings.port
    result = await generator.round(
        port=port, clients=clients, seconds=seconds, most=bounds.most, requests=requests
    )
    if result["refused"]:
        raise RuntimeError(f"the other app was refused: {first_refusal([result])}")
    return result


async def _crowd(crowd: Generator, ready: Installation, bounds: Bounds) -> dict[str, Any]:
    seconds = bounds.seconds / _ROUNDS + min(_BEFORE_S, bounds.seconds) + 0.5
    most = max(bounds.most, GREEDY_CLIENTS)
    return await crowd.round(
        port=ready.settings.port,
        clients=GREEDY_CLIENTS,
        seconds=seconds,
        most=most,
        requests=ready.requests(),
    )


def _p99(result: dict[str, Any]) -> float:
    latencies = sorted(result["latencies"])  # one, perhaps, in a quick run
    return latencies[int(len(latencies) * 0.99)] * 1000
