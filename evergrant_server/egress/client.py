"""Makes HTTP transports and clients that connect only through the guard."""

import ssl
from collections.abc import Callable
from typing import Any

import httpx2

from evergrant_server.core.connections.credentials import ClientCertificate
from evergrant_server.egress.client_tls import tls_with_certificate
from evergrant_server.egress.network import default_tls_context
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import GuardedTransport, SendObserver

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0  # for the whole exchange; less than core.attempt.LIMITS.answer
BODY_LIMIT = 1024 * 1024  # bytes, after decompression


TransportWrapper = Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport]


class Egress:
    """Makes the transports of one process. Reads the TLS context once; connections are never shared.

    `wrapper` wraps every transport, for example to trace requests; the guard stays the innermost.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        body_limit: int = BODY_LIMIT,
        wrapper: TransportWrapper | None = None,
    ) -> None:
        self.policy = policy
        self._tls = tls or default_tls_context()
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._body_limit = body_limit
        self._wrapper = wrapper

    def transport(
        self, observer: SendObserver | None = None, certificate: ClientCertificate | None = None
    ) -> httpx2.AsyncBaseTransport:
        """A guarded transport. `observer.sent` says whether a byte may have left.

        This transport alone presents `certificate` to servers that request one. Raises Failure
        CLIENT_REJECTED when the certificate can't be used.
        """
        guarded = GuardedTransport(
            self.policy,
            tls=tls_with_certificate(self._tls, certificate) if certificate else self._tls,
            connect_timeout_s=self._connect_timeout_s,
            answer_timeout_s=self._answer_timeout_s,
            body_limit=self._body_limit,
            observer=observer,
        )
        return self._wrapper(guarded) if self._wrapper else guarded

    def client(self, observer: SendObserver | None = None, **options: Any) -> httpx2.AsyncClient:
        """An httpx2 client on a guarded transport. An `observer` is for one request.

        It follows no redirects and reads neither proxies nor .netrc from the environment; `options`
        can't change that. Use as `async with`.
        """
        options.update(
            transport=self.transport(observer), trust_env=False, follow_redirects=False, timeout=None
        )
        for option in ("mounts", "proxy"):
            if option in options:
                raise TypeError(f"{option} would go around the egress guard")
        return httpx2.AsyncClient(**options)
