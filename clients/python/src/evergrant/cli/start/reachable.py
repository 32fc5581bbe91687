"""Does anything listen at the server's address? Asked before a command's first request."""

import socket

import httpx2

from evergrant.calls.attempts import transport_error
from evergrant.origins import origin_of

_CONNECT_S = 5.0


def require_listener(url: str) -> None:
    """Raise Unreachable at once where no connection can be made: a command doesn't wait for a server."""
    _, host, port = origin_of(httpx2.URL(url))
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        failed = httpx2.ConnectError("")
        failed.__cause__ = error
        raise transport_error(failed, url) from None
