"""Why a request got no answer, in words for an admin: the host, and what failed on the way to it.

Never a path or a query, and never an error's own text: these may have a code or a secret in them.
"""

import os
import ssl
from collections.abc import Iterator

import httpcore2
import httpx2

DOES_NOT_RESOLVE = "does not resolve"  # in the text of the guarded transport's error
_CLOSED = "closed the connection without an answer"


def why_unreachable(error: httpx2.TransportError) -> str:
    """`HOST refused the connection` and the like, of an error of `Egress.client`. Raises nothing: what became
    of a credential hangs on the error, not on its words."""
    try:
        url = error.request.url
    except RuntimeError:  # the error is of no request
        return connection_problem("the server", error)
    host = f"[{url.host}]" if ":" in url.host else url.host
    return connection_problem(host if url.port is None else f"{host}:{url.port}", error)


def connection_problem(host: str, error: BaseException) -> str:
    """The same of an error whose host is known."""
    if (tls := tls_error(error)) is not None:
        return _tls_problem(host, tls)
    if isinstance(error, (httpx2.ConnectTimeout, httpcore2.ConnectTimeout)):
        return f"{host} did not accept a connection in time"
    if isinstance(error, (httpx2.TimeoutException, TimeoutError)):
        return f"{host} did not answer in time"
    if DOES_NOT_RESOLVE in str(error):
        return f"{host} has no address in DNS"
    if isinstance(error, httpx2.RemoteProtocolError):
        closed = "disconnected" in str(error)
        return f"{host} {_CLOSED if closed else 'did not answer in HTTP'}"
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return f"{host} refused the connection"
        if isinstance(cause, ConnectionError):
            return f"{host} {_CLOSED}"
        if isinstance(cause, OSError) and cause.errno is not None:
            return f"{host} could not be reached ({os.strerror(cause.errno)})"
    return f"{host} could not be reached ({type(error).__name__})"


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error behind another one."""
    return next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)


def _tls_problem(host: str, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not trusted ({error.verify_message or error.reason})"
    return f"{host} does not answer in TLS ({error.reason or type(error).__name__})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
