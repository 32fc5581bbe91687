"""Id tokens: what one says, and whether it answers our request (OpenID Connect Core 1.0). Pure."""

import base64
import hashlib
import hmac
import json
from typing import Any, cast

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret


def claims_of(id_token: Secret) -> dict[str, Any]:
    """Unverified: it came from the token endpoint itself, over TLS (section 3.1.3.7). Empty for what
    is no id token, or an encrypted one."""
    try:
        payload = id_token.reveal().split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", claims) if isinstance(claims, dict) else {}


def hash_of_nonce(nonce: str) -> str:
    """What an id token's nonce is compared with, without keeping the nonce itself."""
    return hashlib.sha256(nonce.encode("utf-8", "surrogatepass")).hexdigest()


def require_nonce(id_token: Secret | None, nonce_hash: str | None) -> None:
    """Raise Failure ID_TOKEN_REFUSED for an id token that isn't of the request with this nonce.

    Without a `nonce_hash` no nonce was sent. A reply without an id token is accepted.
    """
    if id_token is None or nonce_hash is None:
        return
    nonce = claims_of(id_token).get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(hash_of_nonce(nonce), nonce_hash):
        raise Failure(ErrorCode.ID_TOKEN_REFUSED)
