"""Requests with a token that is bound to a key: what they carry, and the nonces that resources want.

RFC 9449 section 7 (the two headers) and 9 (nonces of a resource server).
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import httpx2

from evergrant.errors import ProviderUnavailable
from evergrant.models import Lease, Proof

MAX_PROOF_ATTEMPTS = 3
_MOST_NONCES = 1_000
_ASKS = re.compile(r"\buse_dpop_nonce\b")


@dataclass(frozen=True, slots=True)
class LeaseWithProof:
    """A lease and a proof that belong together."""

    lease: Lease
    proof: Proof


def is_bound(lease: Lease) -> bool:
    return lease.token_type.lower() == "dpop"


def generation_keeps_changing(lease: Lease) -> ProviderUnavailable:
    """The grant was refreshed each time between the lease and its proof."""
    return ProviderUnavailable(
        f"{lease.connection_id} keeps changing", code="refresh_pending", retry_after=1.0
    )


def set_authorization(request: httpx2.Request, lease: Lease, proof: Proof | None = None) -> None:
    """Put the token on the request, and its proof where that is bound."""
    kind = "Bearer" if lease.token_type.lower() == "bearer" else lease.token_type
    request.headers["authorization"] = f"{kind} {lease.access_token}"
    if proof is not None:
        request.headers["dpop"] = proof.proof


class NonceStore:
    """The newest nonce of each origin; threads may share one."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def get(self, url: httpx2.URL) -> str | None:
        with self._lock:
            return self._known.get(_origin(url))

    def remember(self, response: httpx2.Response) -> None:
        """Keep what the answer says should be in the next proof (RFC 9449 section 8.2)."""
        said = response.headers.get("dpop-nonce")
        if said is None:
            return
        with self._lock:
            self._known[_origin(response.request.url)] = said
            if len(self._known) > _MOST_NONCES:
                self._known.popitem(last=False)


def is_nonce_challenge(response: httpx2.Response) -> bool:
    """Did the resource look at nothing but the nonce? The token was not refused then."""
    asked = _ASKS.search(response.headers.get("www-authenticate", "")) is not None
    return response.status_code == 401 and asked and "dpop-nonce" in response.headers


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.host}:{url.port}"
