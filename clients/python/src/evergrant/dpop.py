"""Requests with a token that is bound to a key: their two headers, and the nonces of resources.

RFC 9449 sections 7 (the headers) and 9 (nonces of a resource server).
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import httpx2

from evergrant.errors import ProviderUnavailable
from evergrant.models import Lease, Proof
from evergrant.origins import Origin, origin_of

MAX_PROOF_ATTEMPTS = 3
_MAX_NONCES = 1_000
_USE_NONCE = re.compile(r"\buse_dpop_nonce\b")


@dataclass(frozen=True, slots=True)
class LeaseWithProof:
    """A lease and a proof of the same generation."""

    lease: Lease
    proof: Proof


def is_bound(lease: Lease) -> bool:
    """Whether the token is bound to a key, so that each request needs a proof."""
    return lease.token_type.lower() == "dpop"


def generation_keeps_changing(lease: Lease) -> ProviderUnavailable:
    """The error when the grant was refreshed each time between the lease and its proof."""
    return ProviderUnavailable(
        f"{lease.connection_id} keeps changing", code="refresh_pending", retry_after=1.0
    )


def set_authorization(request: httpx2.Request, lease: Lease, proof: Proof | None = None) -> None:
    """Put the token on the request, and the proof of a bound token."""
    scheme = "Bearer" if lease.token_type.lower() == "bearer" else lease.token_type
    request.headers["authorization"] = f"{scheme} {lease.access_token}"
    if proof is not None:
        request.headers["dpop"] = proof.proof


class NonceStore:
    """The newest nonce of each origin. Threads may share one."""

    def __init__(self) -> None:
        self._nonces: OrderedDict[Origin, str] = OrderedDict()
        self._lock = Lock()

    def get(self, url: httpx2.URL) -> str | None:
        with self._lock:
            return self._nonces.get(origin_of(url))

    def remember(self, response: httpx2.Response) -> None:
        """Keep the nonce that the response asks for in the next proof (RFC 9449 section 8.2)."""
        nonce = response.headers.get("dpop-nonce")
        if nonce is None:
            return
        with self._lock:
            self._nonces[origin_of(response.request.url)] = nonce
            if len(self._nonces) > _MAX_NONCES:
                self._nonces.popitem(last=False)


def is_nonce_challenge(response: httpx2.Response) -> bool:
    """Whether a 401 only asks for a nonce (RFC 9449 section 9). It refuses no token."""
    asks = _USE_NONCE.search(response.headers.get("www-authenticate", "")) is not None
    return response.status_code == 401 and asks and "dpop-nonce" in response.headers
