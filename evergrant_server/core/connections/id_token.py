"""Id tokens (OpenID Connect Core 1.0): the claims of one that came from a token endpoint, checked. Pure."""

import base64
import hashlib
import hmac
import json
from typing import Any, cast

from evergrant_server.core.connections.account import plain_issuer
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret

_NO_AUDIENCE = "The provider's id token is for no client: its audience (aud) is empty."
_GIVE_AUDIENCE = (
    "Give the OAuth client at the provider an audience: its own client id. Then the subject connects again."
)


def claims_of(id_token: Secret) -> dict[str, Any]:
    """Unchecked. Empty for what is no id token, or an encrypted one."""
    try:
        payload = id_token.reveal().split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", claims) if isinstance(claims, dict) else {}


def hash_of_nonce(nonce: str) -> str:
    """What an id token's nonce is compared with, without keeping the nonce itself."""
    return hashlib.sha256(nonce.encode("utf-8", "surrogatepass")).hexdigest()


def checked_claims(id_token: Secret, *, issuer: str | None, client_id: str) -> dict[str, Any]:
    """The claims of an id token that this issuer made for this client (section 3.1.3.7, items 2 to 5).

    Its signature isn't checked: it came from the token endpoint itself, over TLS (item 6). Without an
    `issuer`, where the provider has named none, any is accepted. Empty for what can't be read. Raises
    Failure ID_TOKEN_REFUSED; CLIENT_REJECTED for an empty audience, which no further consent fills.
    """
    claims = claims_of(id_token)
    if not claims:
        return {}
    iss, sub, aud, party = (claims.get(name) for name in ("iss", "sub", "aud", "azp"))
    audiences = cast("list[object]", aud) if isinstance(aud, list) else [aud]
    ours = client_id in audiences and (party == client_id or (party is None and len(audiences) == 1))
    problem = None
    if not isinstance(iss, str) or plain_issuer(iss) != plain_issuer(issuer or iss or "unknown"):
        problem = "is of another issuer"
    elif not any(audiences):
        raise Failure(ErrorCode.CLIENT_REJECTED, _NO_AUDIENCE, repair=_GIVE_AUDIENCE)
    elif not ours:
        problem = "is for another client"
    elif not isinstance(sub, str) or not sub:
        problem = "names no subject"
    if problem is not None:
        raise Failure(ErrorCode.ID_TOKEN_REFUSED, f"The provider's id token {problem}.")
    return claims


def require_nonce(id_token: Secret | None, nonce_hash: str | None) -> None:
    """Raise Failure ID_TOKEN_REFUSED for an id token that isn't of the request with this nonce.

    Without a `nonce_hash` no nonce was sent. A reply without an id token is accepted.
    """
    if id_token is None or nonce_hash is None:
        return
    nonce = claims_of(id_token).get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(hash_of_nonce(nonce), nonce_hash):
        raise Failure(ErrorCode.ID_TOKEN_REFUSED, "The provider's id token is of another request.")
