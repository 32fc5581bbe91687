"""DPoP (RFC 9449): proofs of possession of the key that binds tokens, and the servers' nonces.

Pure but for a proof's random id and the cache of nonces.
"""

import hashlib
import json
import re
import secrets
from base64 import urlsafe_b64encode
from datetime import datetime
from urllib.parse import urlsplit, urlunsplit

from joserfc import jwt
from joserfc.jwk import ECKey

from evergrant_server.core.bounded import Bounded
from evergrant_server.core.connections.credentials import DPOP_ALGORITHM, DPOP_TOKEN_TYPE, ProofKey
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import ClientAuth
from providers.definition.templates import client_auth_of
from providers.responses.raw_reply import RawReply, UnreadableBody, parse_body

_NONCE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,1024}")  # RFC 9449 section 8.1
_MAX_NONCES = 10_000
_DEFAULT_PORTS = {"https": 443, "http": 80}


def wants_dpop(spec: ProviderSpec, integration: Integration, grant: Grant | None) -> bool:
    """Whether the connection's tokens are bound to a key.

    The integration decides, else the definition. A bound grant stays bound: its refresh token may be
    bound too, and a public client's always is (RFC 9449 section 5).
    """
    is_bound = grant is not None and grant.token_type == DPOP_TOKEN_TYPE
    if integration.dpop is not None:
        public = client_auth_of(spec, integration) == ClientAuth.NONE
        return integration.dpop or (is_bound and public)
    return spec.dpop or is_bound


def with_dpop_binding(spec: ProviderSpec, integration: Integration, grant: Grant | None) -> ProviderSpec:
    """The definition with `dpop` set as `wants_dpop` decides for this connection."""
    wanted = wants_dpop(spec, integration, grant)
    return spec if wanted is spec.dpop else spec.__replace__(dpop=wanted)


def require_dpop_algorithm(spec: ProviderSpec, endpoints: Endpoints) -> None:
    """Raise Failure CLIENT_REJECTED for a server that can't verify our proofs (RFC 9449 section 5.1)."""
    if endpoints.dpop_algorithms and DPOP_ALGORITHM not in endpoints.dpop_algorithms:
        detail = f"{spec.name} accepts no proof signed with {DPOP_ALGORITHM}"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name, field="dpop")


def dpop_proof(
    key: ProofKey,
    method: str,
    url: str,
    at: datetime,
    *,
    nonce: str | None = None,
    access_token: Secret | None = None,
) -> str:
    """The proof of one request (RFC 9449 section 4.2).

    `access_token` is the token that a request to a protected resource carries (section 7).
    """
    claims: dict[str, object] = {
        "jti": secrets.token_urlsafe(16),
        "htm": method.upper(),
        "htu": htu_of(url),
        "iat": int(at.timestamp()),
    }
    if nonce is not None:
        claims["nonce"] = nonce
    if access_token is not None:
        digest = hashlib.sha256(access_token.reveal().encode("ascii")).digest()
        claims["ath"] = urlsafe_b64encode(digest).rstrip(b"=").decode()
    header = {"typ": "dpop+jwt", "alg": DPOP_ALGORITHM, "jwk": key.public}
    private = ECKey.import_key(json.loads(key.private.reveal()))
    return jwt.encode(header, claims, private, algorithms=[DPOP_ALGORITHM])


def htu_of(url: str) -> str:
    """`htu`: the URL without query and fragment (RFC 9449 section 4.2)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", "", ""))


def requires_nonce(reply: RawReply) -> bool:
    """Whether the server only asks for a nonce, which spends no credential (RFC 9449 section 8)."""
    if reply.status not in (400, 401) or nonce_in(reply) is None:
        return False
    try:
        return parse_body(reply.body, "json").get("error") == "use_dpop_nonce"
    except UnreadableBody:
        return False


def nonce_in(reply: RawReply) -> str | None:
    """The nonce for the next proof; a token reply may hold one too (RFC 9449 section 8.2)."""
    text = reply.headers.get("dpop-nonce", "")
    return text if _NONCE.fullmatch(text) else None


def is_nonce(text: str) -> bool:
    return _NONCE.fullmatch(text) is not None


class NonceCache:
    """The newest nonce by server and key. Losing one costs a second request."""

    def __init__(self) -> None:
        self._known = Bounded[tuple[str, str], str](_MAX_NONCES)

    def get(self, url: str, key: ProofKey) -> str | None:
        return self._known.get((origin_of(url), key.thumbprint))

    def remember(self, url: str, key: ProofKey, reply: RawReply) -> None:
        nonce = nonce_in(reply)
        if nonce is not None:
            self._known[origin_of(url), key.thumbprint] = nonce


def origin_of(url: str) -> str:
    """Scheme, host and port as one string (RFC 6454 section 4)."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"
