"""The gateway's server: uvicorn's, with a reading of requests that leaves no doubt, and time limits.

granian, which runs the API, accepts bare LF and a length beside chunks, and hides both from the application
(ADR 0055).
"""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from evergrant_server.gateway.http.strict import MOST_HEAD, StrictConnection

HEAD_TIMEOUT_S = 15.0  # for a request's head, and between two requests
_LINGER_S = 1.0
_REFUSED = b'{"status":400,"code":"invalid_request","title":"The request is malformed or ambiguous."}'
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"Evergrant-Error: invalid_request\r\nContent-Length: %d\r\n\r\n%b" % (len(_REFUSED), _REFUSED)
)


class StrictProtocol(H11Protocol):
    """One connection. A request with two readings is answered with 400, and nothing after it is read."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
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
