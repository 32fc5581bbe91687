"""Zoom's `app_deauthorized`: somebody removed the app. `v0` signatures over timestamp and body.

developers.zoom.us: "Using webhooks", "App deauthorized". An endpoint is first asked to prove
that it knows the secret (`endpoint.url_validation`).
"""

from evergrant_server.core.elsewhere import Weight
from providers.events.base import (
    LONGEST_ID,
    Fact,
    Heard,
    Incoming,
    Trust,
    account,
    body_object,
    digest,
    echoed,
    hex_hmac,
    key_of,
    member,
    require,
    same,
    signed_moment,
    unix,
)

_MILLISECONDS = 0.001


def verify_zoom(it: Incoming, trust: Trust) -> Heard:
    key = key_of(trust)
    timestamp = it.headers.get("x-zm-request-timestamp", "")
    expected = "v0=" + hex_hmac(key, b"v0:", timestamp.encode(), b":", it.body)
    require(same(expected, it.headers.get("x-zm-signature", "")))
    signed_moment(timestamp, it.now)
    body = body_object(it.body)
    event = body.get("event")
    plain = member(body, "payload", "plainToken")
    if event == "endpoint.url_validation" and isinstance(plain, str) and len(plain) <= LONGEST_ID:
        proof = hex_hmac(key, echoed(plain).encode())
        return Heard("", answer={"plainToken": plain, "encryptedToken": proof})
    if event != "app_deauthorized":
        return Heard("")
    if member(body, "payload", "client_id") not in (None, trust.client_id):
        return Heard("")
    at = unix(body.get("event_ts"), unit=_MILLISECONDS)
    accounts = account(member(body, "payload", "user_id"))
    return Heard(digest(it.body), (Fact("zoom:app_deauthorized", Weight.ENDED, accounts, at),))
