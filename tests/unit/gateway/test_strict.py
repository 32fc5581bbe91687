"""The strict reading of requests: what is right passes, however it is cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from evergrant_server.gateway.server import StrictProtocol, make_server
from tests.fakes.patience import PATIENCE_S

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"4\r\na\nb\r\r\n5;ext=1\r\n\r\n\r\nc\r\n0\r\n\r\n"
CONTENT = b"a\nb\r\r\n\r\nc"
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])


class Wire(asyncio.Transport):
    """What the protocol has written; it is fed by hand, so that each cut is where a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.has_ended = self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        self.has_ended = True

    def is_closing(self) -> bool:
        return self.has_ended

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Server:
    """One connection to an application that keeps what it gets, and answers once `may_answer` is set."""

    def __init__(self) -> None:
        self.wire, self.seen = Wire(), list[tuple[Scope, bytes | None]]()  # None: the caller left
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        config = make_server(self._app, drain_s=1).config
        config.load()
        self.protocol = StrictProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        self.protocol.connection_made(self.wire)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append((scope, None))
                return
            body, more = body + message["body"], message["more_body"]
        self.seen.append((scope, body))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def feed(self, data: bytes, size: int) -> None:
        for first in range(0, len(data), size):
            if not self.wire.has_ended:
                self.protocol.data_received(data[first : first + size])
            await asyncio.sleep(0)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def bodies(self) -> list[bytes | None]:
        return [body for _, body in self.seen]


@asynccontextmanager
async def connected() -> AsyncIterator[Server]:
    server = Server()
    async with asyncio.timeout(PATIENCE_S):
        yield server
    server.protocol.connection_lost(None)


@SIZES
async def test_line_feeds_in_a_chunked_body_are_content(size: int):
    async with connected() as server:
        await server.feed(HEAD + BODY, size)
        assert server.bodies == [CONTENT]
        assert server.wire.written.startswith(b"HTTP/1.1 200 ")


@SIZES
@pytest.mark.parametrize(
    "wrong",
    [
        BODY[:-2] + b"\n",
        BODY.replace(b"5;ext=1\r\n", b"5\n"),
        BODY[:-2] + b"X: y\r\n\r\n",
        BODY.replace(b"5;ext=1", b"5;" + b"e" * 60_000),
        b"0" * 60_000 + BODY,
    ],
    ids=["a bare LF at the end", "a bare LF after a size", "trailers", "a long extension", "a long size"],
)
async def test_framing_with_two_readings_is_refused(size: int, wrong: bytes):
    async with connected() as server:
        await server.feed(HEAD + wrong + b"1\r\nx", max(size, len(wrong) // 1000))
        assert server.wire.written.startswith(b"HTTP/1.1 400 ")
        assert server.wire.written.count(b"HTTP/1.1 ") == 1
        assert CONTENT not in server.bodies


@SIZES
async def test_requests_behind_each_other_are_answered_in_turn(size: int):
    sized = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    async with connected() as server:
        server.may_answer.clear()
        await server.feed(b"".join(sized % number for number in range(3)), size)
        assert server.bodies == [b"abc"], "the next is read when this one is answered"
        server.may_answer.set()
        await server.settled()
        assert server.bodies == [b"abc"] * 3
        assert [scope["path"] for scope, _ in server.seen] == ["/0", "/1", "/2"]
        assert server.wire.written.count(b"HTTP/1.1 200 ") == 3


async def test_what_waits_behind_a_request_is_bounded_and_leaving_is_seen():
    async with connected() as server:
        server.may_answer.clear()
        await server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5_000, 1000)
        assert server.wire.is_paused
        assert len(server.seen) == 1
        server.protocol.connection_lost(ConnectionResetError())
        server.may_answer.set()
        await server.settled()
        assert len(server.seen) == 1


async def test_a_request_in_the_same_piece_as_the_chunks_before_is_not_read():
    """The parser doesn't say where it stands: the first is answered, then the connection is closed."""
    async with connected() as server:
        await server.feed(HEAD + BODY + b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
        assert server.bodies == [CONTENT]
        assert server.wire.written.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in server.wire.written
        assert server.wire.has_ended


@pytest.mark.parametrize(
    "head",
    [
        b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\nX\x0b: b\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
        HEAD[:-2] + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000000000000\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_head_with_two_readings_is_refused(head: bytes, size: int):
    async with connected() as server:
        await server.feed(head, size)
        assert server.wire.written.startswith(b"HTTP/1.1 400 ")
        assert not any(server.bodies)


@pytest.mark.parametrize(
    "target", [b"/", b"/a?", b"/a?b?c", b"//a:1/b", b"/%2F?%23", b"/:@/;=&?/", b"/a\\^`{|}"]
)
async def test_path_and_query_are_the_target_in_two(target: bytes):
    async with connected() as server:
        await server.feed(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target, 1000)
        ((scope, _),) = server.seen
    raw, _, query = target.partition(b"?")
    assert (scope["raw_path"], scope["query_string"]) == (raw, query)
