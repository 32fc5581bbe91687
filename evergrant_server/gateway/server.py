"""The gateway's server: uvicorn's, with a reading of requests that leaves no doubt, and time limits.

A request with more than one reading (RFC 9112 section 11.2) is refused before anything else looks at it.
llhttp reads it without any leniency; what llhttp lets pass and another server may read otherwise is refused
here (ADR 0087). granian, which runs the API, accepts bare LF and a length beside chunks, and hides both from
the application (ADR 0055).
"""

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 15.0  # for a request's head, and between two requests
_LINGER_S = 1.0
_REFUSED = b'{"status":400,"code":"invalid_request","title":"The request is malformed or ambiguous."}'
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"Evergrant-Error: invalid_request\r\nContent-Length: %d\r\n\r\n%b" % (len(_REFUSED), _REFUSED)
)
MOST_HEAD = 32 * 1024  # bytes of a request line and its headers
MOST_HEADERS = 200
_PIECE = 16 * 1024  # bytes that the parser gets at once of a chunked body
_MOST_WAITING = 64 * 1024  # bytes that are read while a response is due, or that wait to be written
_END = b"\r\n\r\n"
_WRONG_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\0")
_HEAD = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ /[\x21\x22\x24-\x7e]* HTTP/1\.[01]\r\n"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)  # RFC 9112 sections 3 and 5; the origin form alone, without a fragment

_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host", b"upgrade"})
_WHITESPACE = (b" ", b"\t")


class StrictProtocol(HttpToolsProtocol):
    """One connection. A request with two readings is answered with 400, and nothing after it is read.

    The parser gets one message at a time: a head that is whole and has one reading, then its body. What
    follows waits here for the response.
    """

    parser: HttpRequestParser

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.parser = HttpRequestParser(self)  # uvicorn's takes what follows `Connection: close`
        self.access_log = False  # its lines hold paths and queries
        self.timeout_keep_alive = HEAD_TIMEOUT_S  # type: ignore[assignment]  # uvicorn's are whole seconds
        self._received = b""  # what the parser hasn't read yet
        self._left: int | None = None  # bytes of a body that are to come; None: chunks are
        self._is_whole = True  # the request: the next one begins
        self._reads_head = False
        self._around = 0  # bytes since the last chunk's data
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self.transport = _Together(transport, self.loop)  # type: ignore[assignment]  # as far as uvicorn uses it
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += data
        self._read()
        if len(self._received) > _MOST_WAITING:
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._read()

    def _read(self) -> None:
        try:
            while self._received and not self._refused:
                if not (self._read_head() if self._is_whole else self._read_body()):
                    break
        except (HttpParserError, HttpParserUpgrade):
            self.send_400_response("")

    def _read_head(self) -> bool:
        """Whether there was a whole one. It waits for the response to the request before."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        end = self._received.find(_END)
        head = self._received if end < 0 else self._received[: end + len(_END)]
        if len(head) > MOST_HEAD:
            _refuse(f"a head of more than {MOST_HEAD} bytes")
        if end < 0:
            if _WRONG_END.search(head):
                _refuse("a line ends otherwise than with CR LF")
            return False
        if not _HEAD.fullmatch(head):
            _refuse("a head that isn't one of HTTP/1.1")
        self._received = self._received[len(head) :]
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self._reads_head = True
        self.parser.feed_data(head)
        self._reads_head = False
        return True

    def _read_body(self) -> bool:
        most = _PIECE if self._left is None else self._left
        piece, self._received = self._received[:most], self._received[most:]
        if self._left is not None:
            self._left -= len(piece)
        self._around += len(piece)
        try:
            self.parser.feed_data(piece)
        except HttpParserError:
            if not self._is_whole:
                raise
            self._refused = True  # what follows chunks in the same piece isn't read
            self.cycle.keep_alive = False
        if self._around > MOST_HEAD:
            _refuse(f"more than {MOST_HEAD} bytes between two chunks")
        return True

    def on_message_begin(self) -> None:
        if not self._reads_head:
            _refuse("a request in the same piece as the chunks of the one before")
        super().on_message_begin()
        self._is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reads_head:
            _refuse("no trailers are read")
        if value.endswith(_WHITESPACE) and name.lower() not in _FRAMING:  # that is judged as it was sent
            value = value.rstrip(b" \t")  # RFC 9112 section 5.1
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse what llhttp reads in one way, and another server may read otherwise."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            if name in _FRAMING:
                values.setdefault(name, []).append(value)
        is_new = self.parser.get_http_version() == "1.1"
        encodings = values.get(b"transfer-encoding")
        if encodings is not None and (len(encodings) > 1 or encodings[0].lower() != b"chunked" or not is_new):
            _refuse("a Transfer-Encoding that isn't chunked alone")  # RFC 9112 section 6.1
        if b"upgrade" in values:
            _refuse("no protocol is upgraded to")
        if len(values.get(b"host", ())) > 1 or (is_new and b"host" not in values):
            _refuse("not one Host")  # RFC 9112 section 3.2
        if len(self.headers) > MOST_HEADERS:
            _refuse("too many header fields")
        lengths = values.get(b"content-length", [b"0"])  # llhttp refuses a second one
        if not _LENGTH.match(lengths[0]):
            _refuse("a Content-Length that isn't in digits")  # RFC 9112 section 6.3
        self._left = None if encodings else int(lengths[0])
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._around = 0

    def on_body(self, body: bytes) -> None:
        self._around = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_whole = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer with 400 unless a response has begun, and close. The rest of the request is discarded for a
        moment: a close with unread bytes would reset the connection before the answer is read."""
        self._refused = True
        cycle = self.cycle
        is_open = cycle is not None and not cycle.response_complete
        if not (is_open and cycle.response_started):
            self.transport.write(_REFUSAL)
        if is_open:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def _refuse(why: str) -> None:
    raise HttpParserError(why)


class _Together:
    """A transport whose writes within one pass through the event loop leave as one: uvicorn writes the head,
    the body and the end of a response one by one, and each would be a call of the system."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []
        self._size = 0
        self.is_closing, self.can_write_eof = transport.is_closing, transport.can_write_eof

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _MOST_WAITING:
            self._flush()  # so that a caller that doesn't read is noticed

    def _flush(self) -> None:
        if self._pieces:
            self._transport.write(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
            self._pieces.clear()
            self._size = 0

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()


class GatewayServer(Server):
    """A server that ends with a signal, and doesn't raise it again: what was asked for is done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(app: Any, *, drain_s: float, **listener: Any) -> Server:
    """The server of an ASGI application. On SIGTERM it takes no more requests, and ends those that are open
    within `drain_s`."""
    # it warns of each refused request, and of each response that the application leaves without an end
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return GatewayServer(
        Config(
            app,
            http=StrictProtocol,
            ws="none",
            loop="uvloop",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(HEAD_TIMEOUT_S),
            timeout_graceful_shutdown=int(drain_s),
            **listener,
        )
    )


class Lifespan:
    """The ASGI application that `start` makes. `failure`: why it couldn't."""

    def __init__(self, start: Callable[[AsyncExitStack], Awaitable[ASGIApp]]) -> None:
        self._start = start
        self._app: ASGIApp | None = None
        self._opened = AsyncExitStack()
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            assert self._app is not None
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            self._app = await self._start(self._opened)
        except Exception as failure:
            self.failure = failure
            await self._opened.aclose()
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._opened.aclose()
        await send({"type": "lifespan.shutdown.complete"})
