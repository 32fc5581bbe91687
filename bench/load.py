"""The load generator: keep-alive HTTP/1.1 clients on raw sockets, in a process of their own.

An HTTP library would be the bottleneck. Each client sends its next request when the last response
is complete (a closed loop), so the rate is the server's.

The process reads one round per line from standard input and answers with one line of JSON:
`{"port": 8480, "clients": 16, "seconds": 2.0, "most": 100000, "requests": [...]}`.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter
from typing import Any

HOST = "127.0.0.1"
_END_LIMIT_S = 10.0  # a response that comes later than this after the end counts as lost


@dataclass
class RoundTally:
    """The responses of one round. Latencies are seconds."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    sample: str = ""  # the last answer that was not a 200
    body_bytes: int = 0  # of the last answer that was


class Client(asyncio.Protocol):
    """One connection: sends, waits for the whole response, and repeats until the round ends."""

    def __init__(self, requests: Iterator[bytes], tally: RoundTally, until: float, most: int) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._tally = tally
        self._until = until
        self._most = most
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        size = body_size(self._buffer)
        if size is None:
            return
        now = perf_counter()
        if self._buffer.startswith(b"HTTP/1.1 200"):
            self._tally.latencies.append(now - self._sent)
            self._tally.body_bytes = size
        else:
            self._tally.refused += 1
            self._tally.sample = self._buffer.decode(errors="replace")
        self._buffer = b""
        if now < self._until and len(self._tally.latencies) + self._tally.refused < self._most:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def body_size(buffer: bytes) -> int | None:
    """The size of the body of the response in `buffer`; None while it is incomplete."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    at = buffer[:head].lower().find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("an answer without Content-Length")
    line_end = buffer.find(b"\r\n", at + 2)
    size = int(buffer[at + len(b"\r\ncontent-length:") : line_end])
    return size if len(buffer) >= head + 4 + size else None


async def run_round(order: dict[str, Any]) -> dict[str, Any]:
    """Run one round. `most` bounds the requests, `seconds` the time."""
    tally = RoundTally()
    requests = cycle([text.encode() for text in order["requests"]])
    began = perf_counter()
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for _ in range(order["clients"]):
        client = Client(requests, tally, began + order["seconds"], order["most"])
        clients.append(client)
        await loop.create_connection(lambda client=client: client, HOST, order["port"])
    limit = order["seconds"] + _END_LIMIT_S
    _, lost = await asyncio.wait([client.ended for client in clients], timeout=limit)
    return {
        "seconds": perf_counter() - began,
        "latencies": tally.latencies,
        "refused": tally.refused + len(lost),
        "sample": tally.sample,
        "body_bytes": tally.body_bytes,
    }


def main() -> None:
    """Run rounds until standard input ends."""
    gc.disable()  # a pause would count as the server's, and nothing here makes many cycles
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run_round(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
