"""The options of both clients, and the state that both hold."""

import ssl
from datetime import timedelta
from typing import TypedDict

from evergrant.auth import ReportedTokens
from evergrant.lease_cache import CACHE_LEASES_FOR, Clock, LeaseCache, utc_now
from evergrant.retries import DEADLINE
from evergrant.server import ServerAddress


class ClientOptions(TypedDict, total=False):
    """Optional arguments of both clients.

    `deadline` bounds each call with all its attempts (thirty seconds). Plain http is for this machine
    only, unless `allow_plain_http`. `cache_leases_for` (thirty seconds) bounds how long a lease is
    served again from this process, and so how long it can outlive a revocation made elsewhere; with
    zero each lease is a request to Evergrant. `clock` is for tests.
    """

    deadline: timedelta
    tls: ssl.SSLContext | None
    allow_plain_http: bool
    cache_leases_for: timedelta
    clock: Clock


class ClientState:
    """The server's address, the deadline, the lease cache and the reported tokens of one client."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
        cache_leases_for: timedelta = CACHE_LEASES_FOR,
        clock: Clock = utc_now,
    ) -> None:
        self._server = ServerAddress.from_settings(url, api_key, allow_plain_http=allow_plain_http)
        self._deadline = deadline
        self._tls = tls or True
        self._cache = LeaseCache(cache_leases_for, clock)
        self._reported = ReportedTokens()
