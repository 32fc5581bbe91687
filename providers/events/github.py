"""GitHub's `github_app_authorization`: a user took back what a GitHub App may do for them.

docs.github.com: "Validating webhook deliveries". The signature covers no moment, so an old
delivery can be played again; a refresh tells whether it is true, where there is one.
"""

from evergrant_server.core.elsewhere import Weight
from providers.events.base import (
    Fact,
    Heard,
    Incoming,
    Trust,
    account,
    body_object,
    digest,
    hex_hmac,
    key_of,
    member,
    require,
    same,
)


def verify_github(it: Incoming, trust: Trust) -> Heard:
    expected = "sha256=" + hex_hmac(key_of(trust), it.body)
    require(same(expected, it.headers.get("x-hub-signature-256", "")))
    event = it.headers.get("x-github-event", "")
    if event != "github_app_authorization":
        return Heard("")
    body = body_object(it.body)
    if body.get("action") != "revoked":
        return Heard("")
    sender = body.get("sender")
    accounts = (*account(member(sender, "id")), *account(member(sender, "login")))
    id = digest(it.headers.get("x-github-delivery", "").encode(), it.body)
    return Heard(id, (Fact("github:github_app_authorization.revoked", Weight.DOUBTED, accounts),))
