"""What stands before two APIs: each connection goes to one in rotation, and a draining one gets none."""

import asyncio
import itertools
from contextlib import suppress


class Balancer:
    """Hands bytes on. `urls` of callers name it alone."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._turns = itertools.count()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = port

    def add(self, name: str, port: int) -> None:
        self._ports[name] = port
        self._open.setdefault(name, 0)

    async def drain(self, name: str) -> None:
        """Take it out of the rotation, and wait until its connections have ended."""
        self._ports.pop(name, None)
        while self._open.get(name, 0):
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = sorted(self._ports)
        name = names[next(self._turns) % len(names)]
        port = self._ports[name]
        self._open[name] += 1
        try:
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pipe(reader, behind), _pipe(behind_reader, writer))
        except OSError:
            writer.transport.abort()
        finally:
            self._open[name] -= 1


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
