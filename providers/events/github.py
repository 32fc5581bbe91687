"""GitHub's `github_app_authorization` event: a user revoked a GitHub App's authorization.

docs.github.com: "Validating webhook deliveries". The signature covers no timestamp, so a delivery
could be replayed: a refresh or an introspection has to confirm the event.
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


def verify_github(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    expected = "sha256=" + hmac_hex(secret_key(trust), request.body)
    require_signature(equal_in_constant_time(expected, request.headers.get("x-hub-signature-256", "")))
    event = request.headers.get("x-github-event", "")
    if event != "github_app_authorization":
        return VerifiedEvents("")
    body = json_object(request.body)
    if body.get("action") != "revoked":
        return VerifiedEvents("")
    sender = body.get("sender")
    accounts = (*accounts_with_id(nested(sender, "id")), *accounts_with_id(nested(sender, "login")))
    id = sha256_hex(request.headers.get("x-github-delivery", "").encode(), request.body)
    return VerifiedEvents(
        id, (ProviderEvent("github:github_app_authorization.revoked", Certainty.SUSPECTED, accounts),)
    )
