"""Zoom's `app_deauthorized` event: a user removed the app. `v0` signatures over timestamp and body.

developers.zoom.us: "Using webhooks", "App deauthorized". Zoom first validates that the endpoint
knows the secret (`endpoint.url_validation`).
"""

from evergrant_server.core.provider_events.external_revocation import Certainty
from providers.events.base import (
    MAX_ID_LENGTH,
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
    accounts_with_id,
    checked_challenge,
    equal_in_constant_time,
    from_unix,
    hmac_hex,
    json_object,
    nested,
    require_signature,
    secret_key,
    sha256_hex,
    signed_timestamp,
)

_MILLISECONDS = 0.001


def verify_zoom(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    key = secret_key(trust)
    timestamp = request.headers.get("x-zm-request-timestamp", "")
    expected = "v0=" + hmac_hex(key, b"v0:", timestamp.encode(), b":", request.body)
    require_signature(equal_in_constant_time(expected, request.headers.get("x-zm-signature", "")))
    signed_timestamp(timestamp, request.now)
    body = json_object(request.body)
    event = body.get("event")
    plain = nested(body, "payload", "plainToken")
    if event == "endpoint.url_validation" and isinstance(plain, str) and len(plain) <= MAX_ID_LENGTH:
        proof = hmac_hex(key, checked_challenge(plain).encode())
        return VerifiedEvents("", reply={"plainToken": plain, "encryptedToken": proof})
    if event != "app_deauthorized":
        return VerifiedEvents("")
    if nested(body, "payload", "client_id") not in (None, trust.client_id):
        return VerifiedEvents("")
    at = from_unix(body.get("event_ts"), unit=_MILLISECONDS)
    accounts = accounts_with_id(nested(body, "payload", "user_id"))
    return VerifiedEvents(
        sha256_hex(request.body), (ProviderEvent("zoom:app_deauthorized", Certainty.ENDED, accounts, at),)
    )
