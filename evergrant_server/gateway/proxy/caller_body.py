"""The body of a caller's request: a small one is kept, so that it can be sent twice; others stream once."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request

KEPT = 64 * 1024  # bytes
_SLOWEST_S = 30.0  # for a body that is kept: the token is chosen after it has come


class CallerLeft(Exception):
    """The caller closed the connection."""


class CallerBody:
    """Reads the body as it is needed. `read_beginning` comes first."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        names = {name: value for name, value in scope["headers"]}
        declared = names.get(b"content-length")
        self._length = None if declared is None else int(declared)
        self._has_body = self._length is not None or b"transfer-encoding" in names
        self._receive = receive
        self._kept = b""
        self._more = self._has_body
        self.can_be_sent_again = False  # all of it is kept
        self.read = asyncio.Event()  # no more of it is awaited

    async def read_beginning(self) -> None:
        """Read a body of at most KEPT bytes, or as much of a larger one. Raises CallerLeft, and Failure
        INVALID_REQUEST for one that is too slow."""
        if self._length is not None and self._length > KEPT:
            return
        if self._more:
            try:
                async with asyncio.timeout(_SLOWEST_S):
                    while self._more and len(self._kept) <= KEPT:
                        self._kept += await self._next()
            except TimeoutError:
                why = f"The body didn't come within {_SLOWEST_S:.0f} seconds."
                raise invalid_request("body", why) from None
        if not self._more:
            self.can_be_sent_again = True
            self.read.set()

    def kept(self) -> bytes | None:
        """All of the body; None: it is longer than what is kept. `read_beginning` comes first."""
        return self._kept if self.can_be_sent_again else None

    def digest(self) -> str | None:
        """SHA-256 in hex of a body that is kept; None: it is empty. Raises Failure CALL_APPROVAL_REQUIRED for
        one that is too long to be kept, which no approval can be for."""
        if self._has_body and not self.can_be_sent_again:
            raise Failure(ErrorCode.CALL_APPROVAL_REQUIRED, f"A body above {KEPT} bytes can't be approved.")
        return hashlib.sha256(self._kept).hexdigest() if self._kept else None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """How the request to the provider frames it (RFC 9112 section 6)."""
        if not self._has_body:
            return []
        length = len(self._kept) if self.can_be_sent_again else self._length
        return [(b"Transfer-Encoding", b"chunked") if length is None else (b"Content-Length", b"%d" % length)]

    async def stream(self) -> AsyncIterator[bytes]:
        """The body from its beginning. Raises CallerLeft."""
        if self._kept:
            yield self._kept
        while self._more:
            yield await self._next()
        self.read.set()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft
        self._more = message.get("more_body", False)
        return message.get("body", b"")
