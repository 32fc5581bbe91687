"""A connection to a provider's server: one exchange after another, each response read as it arrives."""

import asyncio
import select
from collections.abc import AsyncIterable, AsyncIterator

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from evergrant_server.core.errors import ErrorCode, Failure

RawHeaders = list[tuple[bytes, bytes]]

_KEEP_S = 15.0  # less than servers keep an idle connection: a stale one would lose a request
_MOST_HEAD = 100 * 1024  # bytes of a response's header section, and between two pieces of its body
_HIGH = 64 * 1024  # bytes of a body that wait to be handed on; beyond, nothing is read
LATE = "The provider's API did not answer in time."
LOST = "The provider's API can't be reached, or the connection broke."
_WRONG = "The provider's API broke the protocol, or closed the connection."


class UpstreamClosed(Failure):
    """The provider ended the connection, or was silent for too long, after its response had begun."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. `request` begins an exchange; its response is read by llhttp as it arrives, and waits
    here until `body` hands it on."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._readable = select.poll()
        self._waiter: asyncio.Future[None] | None = None  # for what is read, or for room to write
        self._idle_timer: asyncio.TimerHandle | None = None
        self._failure: str | None = None  # why nothing more can be read
        self._may_write = True
        self._reads = True
        self._begin("")

    def _begin(self, method: str) -> None:
        self.status = 0  # of the final response; 0: its head isn't complete
        self.headers: RawHeaders = []
        self._method = method
        self._asked = False  # some of the request has left
        self._sent = False  # all of it has
        self._complete = False
        self._keeps = False  # the server may be asked again on this connection
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes in them
        self._head_size = 0
        self._unread = 0  # bytes since the last piece of a body

    # --- an exchange ------------------------------------------------------------------

    async def request(self, method: str, head: bytes, body: AsyncIterable[bytes] | None) -> None:
        """Send a request, until the response's head has come (a server may answer before it has read all).

        Raises Failure PROVIDER_UNREACHABLE.
        """
        self._begin(method)
        chunked = b"\r\nTransfer-Encoding: chunked\r\n" in head
        if body is not None:
            async for piece in body:
                if piece:
                    self._write(head + (b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece))
                    head = b""  # it has left with the first piece
                while not self._may_write and not self.status and self._failure is None:
                    await self._wait()
                if self.status or self._failure is not None:
                    return
        self._write(head + b"0\r\n\r\n" if chunked else head)
        self._sent = True

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._asked = True
            self._transport.write(data)

    async def response_head(self) -> None:
        """Wait for `status` and `headers`. Raises Failure PROVIDER_UNREACHABLE."""
        while not self.status:
            if self._failure is not None:
                raise unreachable(self._failure)
            await self._wait()

    async def body(self) -> AsyncIterator[bytes]:
        """The body, as it arrives. Raises UpstreamClosed."""
        while True:
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._waiting = 0
                yield piece
            elif self._complete:
                return
            elif self._failure is not None:
                raise UpstreamClosed(ErrorCode.PROVIDER_UNREACHABLE, self._failure)
            else:
                self._read_on()
                try:
                    await self._wait()
                except Failure as late:
                    raise UpstreamClosed(late.code, late.detail) from None

    def _read_on(self) -> None:
        if not self._reads and self._transport is not None:
            self._reads = True
            self._transport.resume_reading()

    async def _wait(self) -> None:
        """Wait until something has changed. Raises Failure PROVIDER_UNREACHABLE after the silence."""
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(self._silence_s, _expire, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- between two exchanges --------------------------------------------------------

    @property
    def is_reusable(self) -> bool:
        """Request and response are complete, and nothing says that the server won't read another."""
        return self._complete and self._sent and self._keeps and self._failure is None

    def expire(self, idle: "list[UpstreamConnection]") -> None:
        """Close the connection later, and take it out of `idle`, unless it is taken before."""

        def close() -> None:
            idle.remove(self)
            self.close()

        self._idle_timer = self._loop.call_later(_KEEP_S, close)
        self._read_on()

    def taken(self) -> bool:
        """Whether another request may be sent. A connection that the server has closed, or on which it has
        sent something unasked, is closed: also where the event loop hasn't read that yet."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._failure is None and not self._readable.poll(0):
            return True
        self.close()
        return False

    def close(self) -> None:
        """Close at once: what wasn't sent yet never is."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's protocol -----------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one
        self._transport = transport
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        if self._complete or not self._asked:
            self._fail(_WRONG)
            return
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._fail(_WRONG)
        if self._unread > _MOST_HEAD:
            self._fail(_WRONG)
        if self._waiting > _HIGH and self._reads and self._transport is not None:
            self._reads = False
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._transport = None

    def _end(self, error: Exception | None) -> None:
        if self.status and self._ends_with_connection and self._failure is None and error is None:
            self._complete = True
        self._fail(LOST if error is not None else _WRONG)

    def _fail(self, why: str) -> None:
        """Nothing more is read; a response that is complete stays so."""
        if self._failure is None:
            self._failure = why
        self._wake()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake()

    # --- llhttp's callbacks -----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._fail(_WRONG)  # a second response

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._head_size > _MOST_HEAD:
            raise HttpParserError("a header section that is too long")
        if not self.status:  # trailers are read, and left out
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim response (RFC 9110 section 15.2)
            self.headers = []
            return
        encodings = [value.lower() for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if encodings and encodings != [b"chunked"]:
            raise HttpParserError("a transfer encoding that isn't read")
        has_length = any(name.lower() == b"content-length" for name, _ in self.headers)
        self._ends_with_connection = not encodings and not has_length
        self.status = status
        if self._method == "HEAD":
            self.on_message_complete()
            self._parser = HttpResponseParser(self)  # the other one awaits a body

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if not self._complete:
            self._pieces.append(body)
            self._waiting += len(body)

    def on_message_complete(self) -> None:
        if self.status and not self._complete:
            self._complete = True
            self._keeps = self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()


def unreachable(why: str) -> Failure:
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, why, retry_after=1.0)


def _expire(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(unreachable(LATE))
