"""Leases a second through the real server, against a bare route in the same server, and against OpenBao."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench import installation
from bench.bounds import Bounds
from bench.installation import Installation, lease_request
from bench.openbao import OpenBao
from bench.processes import Generator, first_refusal, python_module, running_process
from evergrant_server.cli.serve import settings_environment
from tests.fakes.ports import free_port

CLIENTS = (16, 64)
CONNECTIONS = 100  # leased in turn
_ROUNDS = 3  # the sides alternate, so that other load on the machine affects both
_WARM_UP = 0.5  # seconds


@dataclass
class Side:
    """One of the two servers, and the results of its rounds."""

    port: int
    requests: list[str]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return sum(len(each["latencies"]) for each in self.rounds) / sum(
            each["seconds"] for each in self.rounds
        )

    def percentile(self, percent: int) -> float:
        """Milliseconds."""
        every = [latency for each in self.rounds for latency in each["latencies"]]
        return quantiles(every, n=100, method="inclusive")[percent - 1] * 1000


@dataclass(frozen=True)
class LeaseRate:
    """One row: leases against the bare route, and OpenBao if it is installed. `ratios`: one a round."""

    store: str
    clients: int
    lease: Side
    bare: Side
    openbao: Side | None = None

    @property
    def ratio(self) -> float:
        return self.lease.per_second / self.bare.per_second

    @property
    def of_openbao(self) -> float | None:
        return None if self.openbao is None else self.lease.per_second / self.openbao.per_second

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.lease.rounds, self.bare.rounds, strict=True)
        return [_rate(ours) / _rate(theirs) for ours, theirs in pairs]


@asynccontextmanager
async def two_servers(
    folder: Path, database_url: str, generator: Generator
) -> AsyncIterator[tuple[Installation, int]]:
    """Run the API on a prepared store, and the bare route with a response of the same size."""
    ready = await installation.prepare(
        folder, database_url, free_port(), [installation.token_reply() for _ in range(CONNECTIONS)]
    )
    api = python_module("evergrant_server serve", folder, env=settings_environment(ready.settings))
    async with running_process(api, port=ready.settings.port):
        size = await _answer_bytes(generator, ready)
        port = free_port()
        async with running_process(python_module("bench.bare", folder, str(port), str(size)), port=port):
            yield ready, port


async def measure(
    store: str,
    ready: Installation,
    bare_port: int,
    generator: Generator,
    bounds: Bounds,
    openbao: OpenBao | None = None,
) -> list[LeaseRate]:
    """Measure the sides in alternating rounds, for each number of clients.

    Raises RuntimeError when a server refuses a request.
    """
    rates: list[LeaseRate] = []
    for clients in CLIENTS:
        lease = Side(ready.settings.port, ready.requests())
        bare = Side(
            bare_port,
            [lease_request(bare_port, ready.key, connection.subject) for connection in ready.connections],
        )
        vault = None if openbao is None else Side(openbao.port, openbao.requests())
        sides = [side for side in (lease, bare, vault) if side is not None]
        for side in sides:
            await measure_round(generator, side, clients, _WARM_UP, bounds.most)
        for _ in range(_ROUNDS):
            for side in sides:
                seconds = bounds.seconds / _ROUNDS
                side.rounds.append(await measure_round(generator, side, clients, seconds, bounds.most))
        rates.append(LeaseRate(store, clients, lease, bare, vault))
    return rates


async def measure_round(
    generator: Generator, side: Side, clients: int, seconds: float, most: int
) -> dict[str, Any]:
    """One round. Raises RuntimeError when a request isn't answered with 200."""
    result = await generator.round(
        port=side.port, clients=clients, seconds=seconds, most=most, requests=side.requests
    )
    _refuse_refusals([result])
    return result


async def _answer_bytes(generator: Generator, ready: Installation) -> int:
    """The size of a lease response's body."""
    result = await generator.round(
        port=ready.settings.port, clients=1, seconds=10, most=1, requests=ready.requests()[:1]
    )
    _refuse_refusals([result])
    return result["body_bytes"]


def _refuse_refusals(rounds: Sequence[dict[str, Any]]) -> None:
    if any(each["refused"] for each in rounds):
        raise RuntimeError(f"a request was not answered with 200: {first_refusal(rounds)}")


def _rate(one: dict[str, Any]) -> float:
    return len(one["latencies"]) / one["seconds"]
