"""GitHub's `github_app_authorization`: a user took back what a GitHub App may do for them.

docs.github.com: "Validating webhook deliveries". The signature covers no moment, so an old
delivery can be played again; a refresh tells whether it is true, where there is one.
"""

from evergrant_server.core.provider_events.external_revocation import Certainty
from providers.events.base import (
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
    accounts_with_id,
    equal_in_constant_time,
    hmac_hex,
    json_object,
    nested,
    require_signature,
    secret_key,
    sha256_hex,
)


def verify_github(it: EventRequest, trust: EventTrust) -> VerifiedEvents:
    expected = "sha256=" + hmac_hex(secret_key(trust), it.body)
    require_signature(equal_in_constant_time(expected, it.headers.get("x-hub-signature-256", "")))
    event = it.headers.get("x-github-event", "")
    if event != "github_app_authorization":
        return VerifiedEvents("")
    body = json_object(it.body)
    if body.get("action") != "revoked":
        return VerifiedEvents("")
    sender = body.get("sender")
    accounts = (*accounts_with_id(nested(sender, "id")), *accounts_with_id(nested(sender, "login")))
    id = sha256_hex(it.headers.get("x-github-delivery", "").encode(), it.body)
    return VerifiedEvents(
        id, (ProviderEvent("github:github_app_authorization.revoked", Certainty.SUSPECTED, accounts),)
    )
