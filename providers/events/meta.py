"""Meta's deauthorize callback: a `signed_request` in a form, by Facebook, Instagram and Threads.

developers.facebook.com: "Parsing the signed request": two base64url parts, HMAC-SHA256 over the
second as it is written.
"""

import base64
import binascii
import hashlib
import hmac
import json
from urllib.parse import parse_qs

from evergrant_server.core.elsewhere import Weight
from providers.events.base import (
    Fact,
    Heard,
    Incoming,
    Refused,
    Trust,
    account,
    digest,
    key_of,
    require,
    unix,
)


def verify_meta(it: Incoming, trust: Trust) -> Heard:
    try:
        form = parse_qs(it.body.decode("ascii"), max_num_fields=20)
        (signed,) = form["signed_request"]
        signature, _, payload = signed.partition(".")
        given = _decoded(signature)
    except (KeyError, ValueError, binascii.Error):
        raise Refused("invalid_request", "There is no signed_request that can be read.") from None
    expected = hmac.new(key_of(trust), payload.encode(), hashlib.sha256).digest()
    require(hmac.compare_digest(expected, given))
    try:
        claims = json.loads(_decoded(payload))
    except (ValueError, binascii.Error, RecursionError):
        claims = None
    if not isinstance(claims, dict) or str(claims.get("algorithm")).upper() != "HMAC-SHA256":
        raise Refused("invalid_request", "The signed_request holds something else.")
    fact = Fact(
        "meta:deauthorize", Weight.ENDED, account(claims.get("user_id")), unix(claims.get("issued_at"))
    )
    return Heard(digest(payload.encode()), (fact,))


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
