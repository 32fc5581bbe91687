"""Meta's deauthorize callback: a `signed_request` in a form, from Facebook, Instagram and Threads.

developers.facebook.com: "Parsing the signed request": two base64url parts; HMAC-SHA256 over the
encoded second part.
"""

import base64
import binascii
import hashlib
import hmac
import json
from urllib.parse import parse_qs

from evergrant_server.core.provider_events.external_revocation import Certainty
from providers.events.base import (
    EventRejected,
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
    accounts_with_id,
    from_unix,
    require_signature,
    secret_key,
    sha256_hex,
)


def verify_meta(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    try:
        form = parse_qs(request.body.decode("ascii"), max_num_fields=20)
        (signed,) = form["signed_request"]
        signature, _, payload = signed.partition(".")
        given = _decode_base64url(signature)
    except (KeyError, ValueError, binascii.Error):
        raise EventRejected("invalid_request", "The signed_request is missing or malformed.") from None
    expected = hmac.new(secret_key(trust), payload.encode(), hashlib.sha256).digest()
    require_signature(hmac.compare_digest(expected, given))
    try:
        claims = json.loads(_decode_base64url(payload))
    except (ValueError, binascii.Error, RecursionError):
        claims = None
    if not isinstance(claims, dict) or str(claims.get("algorithm")).upper() != "HMAC-SHA256":
        raise EventRejected("invalid_request", "The signed_request is not an HMAC-SHA256 object.")
    fact = ProviderEvent(
        "meta:deauthorize",
        Certainty.ENDED,
        accounts_with_id(claims.get("user_id")),
        from_unix(claims.get("issued_at")),
    )
    return VerifiedEvents(sha256_hex(payload.encode()), (fact,))


def _decode_base64url(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
