"""A server in front of a key service: it hands requests on, or answers as the service may at its worst.

    async with front_of("http://127.0.0.1:1") as front:
        with front.answers(Reply(503, b"")): ...

Without a service behind it, `respond` answers each request.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import httpx2

from tests.fakes.http_server import listening, read_request
from tests.fakes.patience import PATIENCE_S

_HOP = (
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-encoding",
    "content-length",
    "date",
    "server",
)


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class NoReply(Exception):
    """The connection is closed without one."""


Responder = Callable[[Request], Reply]


class Front:
    """What is said in place of the service, as long as there is something."""

    def __init__(self, behind: str | None, respond: Responder | None) -> None:
        self._behind, self._respond = behind, respond
        self._instead: Responder | None = None
        self._is_open, self._is_silent = True, False
        self.requests: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def answers(self, instead: Reply | Responder) -> Iterator[None]:
        """Answer each request so."""
        self._instead = instead if callable(instead) else lambda _: instead
        try:
            yield
        finally:
            self._instead = None

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close each connection as soon as it is opened, as the proxy of a service that is down."""
        self._is_open = False
        try:
            yield
        finally:
            self._is_open = True

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Take requests and answer none."""
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For `listening`: one request for each connection."""
        if not self._is_open:
            return
        method, target, headers, body = await read_request(reader)
        request = Request(method, target, headers, body)
        self.requests.append(request)
        while self._is_silent:
            await asyncio.sleep(0.05)
        with suppress(NoReply):
            reply = await self._reply(request)
            headers = {**reply.headers, "content-length": str(len(reply.body)), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {reply.status} Reply\r\n{lines}\r\n".encode() + reply.body)
            await writer.drain()

    async def _reply(self, request: Request) -> Reply:
        if self._instead is not None:
            return self._instead(request)
        if self._respond is not None:
            return self._respond(request)
        assert self._behind is not None
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            reply = await client.request(
                request.method, self._behind + request.target, headers=headers, content=request.body
            )
        kept = {name: value for name, value in reply.headers.items() if name.lower() not in _HOP}
        return Reply(reply.status_code, reply.content, kept)


@asynccontextmanager
async def front_of(
    behind: str | None = None, respond: Responder | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Front]:
    front = Front(behind, respond)
    async with listening(front.talk, tls=tls) as front.port:
        yield front


@asynccontextmanager
async def tunnel_to(port: int) -> AsyncIterator[str]:
    """A proxy for HTTPS whose every CONNECT leads to one port of this host; its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        try:
            await asyncio.gather(_pumped(reader, their_writer), _pumped(their_reader, writer))
        finally:
            their_writer.close()

    async with listening(talk) as bound:
        yield f"http://127.0.0.1:{bound}"


async def _pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.write_eof()
