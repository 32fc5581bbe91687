"""Calls through the gateway against direct calls to the same server, as an API and as an MCP server's; memory
while 64 streams pass."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bench import installation
from bench.bounds import Bounds
from bench.installation import Installation
from bench.leases import Side, measure_round
from bench.load import HOST
from bench.processes import Generator, python_module, running_process, sqlite
from evergrant_server.cli.serve import settings_environment
from tests.fakes.ports import free_port

CLIENTS = (1, 16)
STREAMS = 64
_EVENTS = 3600  # an hour, at one a second
_ROUNDS = 3
_WARM_UP = 0.5  # seconds
_SAMPLE_S = 0.05
_MESSAGE = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{}}}'


@dataclass(frozen=True)
class CallRate:
    """One row: calls through the gateway against direct ones. `kind`: by which route."""

    kind: str
    clients: int
    through: Side
    direct: Side

    @property
    def added_ms(self) -> float:
        return self.through.percentile(50) - self.direct.percentile(50)


@dataclass(frozen=True)
class StreamRun:
    """Streams of an hour's events, and the gateway's resident memory in MiB: before them, when a tenth of the
    events had come, and the most of then until the end."""

    streams: int
    events: int
    seconds: float
    before: float
    early: float
    peak: float


async def measure(
    folder: Path, generator: Generator, bounds: Bounds, streams: int = STREAMS
) -> tuple[list[CallRate], StreamRun]:
    async with _running(folder) as (ready, api_port, gateway_port, pid):
        path, key = f"/v1/proxy/{ready.connections[0].id}", ready.key
        through = {
            "proxy": _request(gateway_port, f"{path}/x", key),
            "mcp": _message(gateway_port, f"/mcp/{ready.connections[0].id}", key),
        }
        direct = {"proxy": _request(api_port, "/x", key), "mcp": _message(api_port, "/mcp", key)}
        rates: list[CallRate] = []
        for kind, asked in through.items():
            for clients in CLIENTS:
                sides = Side(gateway_port, [asked]), Side(api_port, [direct[kind]])
                rates.append(await _rate(generator, bounds, kind, clients, *sides))
        events = f"{path}/events/{min(_EVENTS, bounds.most)}"
        reading = [_Reading(events, ready.key, gateway_port) for _ in range(streams)]
        return rates, await _stream(reading, pid, streams * min(_EVENTS, bounds.most) // 10)


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[tuple[Installation, int, int, int]]:
    api_port, gateway_port = free_port(), free_port()
    ready = await installation.prepare(
        folder, sqlite(folder), free_port(), [installation.token_reply()], gateway_port=gateway_port
    )
    upstream = python_module("bench.upstream", folder, str(api_port))
    url = f"http://{HOST}:{api_port}"
    environment = settings_environment(ready.settings)
    gateway = python_module("bench.gateway_process", folder, url, env=environment)
    async with running_process(upstream, port=api_port), running_process(gateway, port=gateway_port):
        yield ready, api_port, gateway_port, int(gateway.pid_file.read_text().split()[0])


async def _rate(
    generator: Generator, bounds: Bounds, kind: str, clients: int, through: Side, direct: Side
) -> CallRate:
    for side in (through, direct):
        await measure_round(generator, side, clients, _WARM_UP, bounds.most)
    for _ in range(_ROUNDS):
        for side in (through, direct):
            seconds = bounds.seconds / _ROUNDS
            side.rounds.append(await measure_round(generator, side, clients, seconds, bounds.most))
    return CallRate(kind, clients, through, direct)


def _message(port: int, path: str, key: str) -> str:
    """A call of a tool, as a client of MCP's newer era sends it."""
    headers = f"Host: {HOST}:{port}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    headers += f"MCP-Protocol-Version: 2026-07-28\r\nContent-Length: {len(_MESSAGE)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{headers}\r\n{_MESSAGE}"


def _request(port: int, path: str, key: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {key}\r\n\r\n"


class _Reading:
    """One stream as it is read; `events`: how many have come."""

    def __init__(self, path: str, key: str, port: int) -> None:
        self._request, self._port = _request(port, path, key).encode(), port
        self.events = 0

    async def run(self) -> None:
        """Raises RuntimeError for a stream without its end."""
        reader, writer = await asyncio.open_connection(HOST, self._port)
        writer.write(self._request)
        tail = b""
        try:
            while chunk := await reader.read(65_536):
                self.events += (tail[-1:] + chunk).count(b"\n\n")
                tail = (tail + chunk)[-5:]
                if tail == b"0\r\n\r\n":
                    return
            raise RuntimeError(f"a stream broke off after {self.events} events")
        finally:
            writer.close()


async def _stream(streams: list[_Reading], pid: int, tenth: int) -> StreamRun:
    before, began = _resident(pid), perf_counter()
    early = peak = 0.0
    running = asyncio.gather(*(stream.run() for stream in streams))
    while not running.done():
        await asyncio.sleep(_SAMPLE_S)
        if sum(stream.events for stream in streams) >= tenth:
            peak = max(peak, _resident(pid))
            early = early or peak
    await running
    events = sum(stream.events for stream in streams)
    return StreamRun(len(streams), events, perf_counter() - began, before, early, peak)


def _resident(pid: int) -> float:
    """MiB (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
