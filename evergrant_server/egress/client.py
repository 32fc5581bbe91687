"""Makes transports and clients that can go nowhere but through the guard."""

import ssl
from collections.abc import Callable
from typing import Any

import httpx2

from evergrant_server.core.connections.client_certificate import ClientCertificate
from evergrant_server.egress.client_tls import tls_with_certificate
from evergrant_server.egress.network import default_tls_context
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import GuardedTransport, SendObserver

CONNECT_TIMEOUT_S = 5.0  # seconds
ANSWER_TIMEOUT_S = 30.0  # seconds for the whole exchange; less than core.attempt.LIMITS.answer
BODY_LIMIT = 1024 * 1024  # bytes, after decompression


TransportWrapper = Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport]


class Egress:
    """The way out of one process. The TLS context is read once; connections belong to each call.

    `around` may watch what passes, as a trace does; the guard is inside it and stays the last.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        tls: ssl.SSLContext | None = None,
        connect_time: float = CONNECT_TIMEOUT_S,
        answer_time: float = ANSWER_TIMEOUT_S,
        body_limit: int = BODY_LIMIT,
        around: TransportWrapper | None = None,
    ) -> None:
        self.policy = policy
        self._tls = tls or default_tls_context()
        self._connect_time = connect_time
        self._answer_time = answer_time
        self._body_limit = body_limit
        self._around = around

    def transport(
        self, watch: SendObserver | None = None, certificate: ClientCertificate | None = None
    ) -> httpx2.AsyncBaseTransport:
        """A guarded transport. With `watch`, its `sent` says whether a byte left.

        `certificate` is presented to whoever asks for one, by this transport alone. Raises Failure
        CLIENT_REJECTED when it can't be.
        """
        guarded = GuardedTransport(
            self.policy,
            tls=tls_with_certificate(self._tls, certificate) if certificate else self._tls,
            connect_time=self._connect_time,
            answer_time=self._answer_time,
            body_limit=self._body_limit,
            watch=watch,
        )
        return self._around(guarded) if self._around else guarded

    def client(self, watch: SendObserver | None = None, **options: Any) -> httpx2.AsyncClient:
        """An httpx2 client on a guarded transport. `watch` is for one request.

        Follows no redirect and reads neither proxies nor .netrc from the environment;
        `options` can't turn that off. Use as `async with`.
        """
        options.update(transport=self.transport(watch), trust_env=False, follow_redirects=False, timeout=None)
        for way_around in ("mounts", "proxy"):
            if way_around in options:
                raise TypeError(f"{way_around} would go around the egress guard")
        return httpx2.AsyncClient(**options)
