"""The gateway's server: uvicorn's, with a reading of requests that leaves no doubt, and time limits.

A request with more than one reading (RFC 9112 section 11.2) is refused before anything else looks at it:
granian, which runs the API, accepts bare LF and a length beside chunks, and hides both from the application
(ADR 0055).
"""

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 15.0  # for a request's head, and between two requests
_LINGER_S = 1.0
_REFUSED = b'{"status":400,"code":"invalid_request","title":"The request is malformed or ambiguous."}'
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"Evergrant-Error: invalid_request\r\nContent-Length: %d\r\n\r\n%b" % (len(_REFUSED), _REFUSED)
)
MOST_HEAD = 32 * 1024  # bytes of a request line and its headers
MOST_HEADERS = 200
_BARE_LF = re.compile(rb"(?<!\r)\n")
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"[^:]+:[ \t]*[0-9]{1,20}[ \t]*")


class StrictProtocol(H11Protocol):
    """One connection. A request with two readings is answered with 400, and nothing after it is read."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.conn = StrictConnection(h11.SERVER, MOST_HEAD)
        self.access_log = False  # its lines hold paths and queries
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._await_head()

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

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


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


class StrictConnection(h11.Connection):
    """h11 without its tolerance: it accepts bare LF, folded lines, and a length beside chunks."""

    _last = b""  # the last byte that was read of a body

    def next_event(self) -> Any:
        """As h11's. Raises h11.RemoteProtocolError for a request that another server may read otherwise."""
        before, state = self.trailing_data[0], self.their_state
        if state is h11.IDLE:
            _require_strict_head(before)
        event = super().next_event()
        if state is h11.SEND_BODY:
            self._require_strict_framing(before, event)
        if isinstance(event, h11.Request):
            self._last = b""
            _require_one_reading(event)
        return event

    def _require_strict_framing(self, before: bytes, event: Any) -> None:
        """Check what is around the chunks: their sizes, and the end (RFC 9112 section 7.1)."""
        after = self.trailing_data[0]
        read = before[: len(before) - len(after)]
        ends = isinstance(event, h11.EndOfMessage)
        framing = read if ends else before if event is h11.NEED_DATA else b""
        if _BARE_LF.search(self._last + framing, len(self._last)):
            _refuse("a line ends otherwise than with CR LF")
        if ends and event.headers:
            _refuse("no trailers are read")
        self._last = read[-1:] or self._last


def _refuse(why: str) -> None:
    raise h11.RemoteProtocolError(why, error_status_hint=400)


def _require_strict_head(received: bytes) -> None:
    """Check lines as they arrive: each ends with CR LF, and neither stands alone (RFC 9112 section 2.2)."""
    head = received.partition(_END)[0]
    if len(head) > MOST_HEAD:
        _refuse(f"a head of more than {MOST_HEAD} bytes")
    whole = head.removesuffix(b"\r")
    lines = whole.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        _refuse("a line ends otherwise than with CR LF")
    if len(lines) > MOST_HEADERS + 1:
        _refuse("too many header fields")
    if any(line[:1] in (b" ", b"\t") for line in lines):  # RFC 9112 section 5.2
        _refuse("a folded line")
    lengths = [line for line in lines[1:] if line[:15].lower() == b"content-length:"]
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(line) for line in lengths):
        _refuse("not one Content-Length, in digits")  # RFC 9112 section 6.3: "4, 4" is read by some alone


def _require_one_reading(request: h11.Request) -> None:
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        _refuse("a Transfer-Encoding beside a Content-Length")  # RFC 9112 section 6.1
    if b"upgrade" in names:
        _refuse("no protocol is upgraded to")
    if not request.target.startswith(b"/"):  # RFC 9112 section 3.2: not absolute, authority or asterisk form
        _refuse("only targets that begin with / are served")


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
