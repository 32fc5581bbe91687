"""Verifies requests that Slack, Zoom, GitHub and Meta sign with a shared secret. The table of verifiers."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from evergrant_server.core.provider_events import AccountIdentifier, Certainty, ReceiverKind, fact_name
from evergrant_server.core.text import is_storable_text
from providers.events.base import (
    MAX_ID_LENGTH,
    TIMESTAMP_TOLERANCE,
    EventRejected,
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
    accounts_with_id,
    decode_base64url,
    from_unix,
    is_identifier,
    json_in_base64url,
    json_object,
)
from providers.events.sets import verify_set

# a reply with a bot's and a user's token has both identifiers, so the holder distinguishes them
_SLACK_USERS = {"oauth": ("user", "authed_user.id"), "bot": ("bot", "bot_user_id")}
_MILLISECONDS = 0.001


def verify_slack(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    """Slack's Events API: `v0` signatures over version, timestamp and body.

    `tokens_revoked` names users and their kind of token; `app_uninstalled` ends all grants of a
    workspace. docs.slack.dev: "Verifying requests from Slack", and the two events.
    """
    timestamp = request.headers.get("x-slack-request-timestamp", "")
    _require_hmac(request, trust, "x-slack-signature", "v0=", f"v0:{timestamp}:")
    _require_recent(timestamp, request.now)
    body = json_object(request.body, "The body is not a JSON object.")
    challenge = body.get("challenge")
    if body.get("type") == "url_verification" and isinstance(challenge, str):
        return VerifiedEvents("", reply={"challenge": _checked_challenge(challenge)})
    event = _nested(body, "event", "type")
    at = from_unix(body.get("event_time"))
    team = body.get("team_id")
    accounts = _slack_accounts(event, team, _nested(body, "event", "tokens")) if is_identifier(team) else ()
    if not accounts:
        return VerifiedEvents("")
    known = body.get("event_id")
    if isinstance(known, str) and not is_storable_text(known):
        raise EventRejected("invalid_request", "event_id holds NUL or a lone surrogate.")
    id = known if isinstance(known, str) else _sha256_hex(request.body)
    return VerifiedEvents(id, (ProviderEvent(f"slack:{event}", Certainty.ENDED, accounts, at),))


def _slack_accounts(event: Any, team: str, tokens: Any) -> tuple[frozenset[AccountIdentifier], ...]:
    whole = AccountIdentifier(fact_name("team.id"), team)
    if event == "app_uninstalled":
        return (frozenset({whole}),)
    if event != "tokens_revoked":
        return ()
    accounts: list[frozenset[AccountIdentifier]] = []
    for name, (kind, path) in _SLACK_USERS.items():
        users = _nested(tokens, name)
        for user in users if isinstance(users, list) else ():
            if is_identifier(user):
                holder = AccountIdentifier(fact_name("holder"), kind)
                accounts.append(frozenset({whole, holder, AccountIdentifier(fact_name(path), user)}))
    return tuple(accounts)


def verify_zoom(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    """Zoom's `app_deauthorized`: a user removed the app. `v0` signatures over timestamp and body.

    Zoom first validates that the endpoint knows the secret (`endpoint.url_validation`).
    developers.zoom.us: "Using webhooks", "App deauthorized".
    """
    timestamp = request.headers.get("x-zm-request-timestamp", "")
    _require_hmac(request, trust, "x-zm-signature", "v0=", f"v0:{timestamp}:")
    _require_recent(timestamp, request.now)
    body = json_object(request.body, "The body is not a JSON object.")
    event = body.get("event")
    plain = _nested(body, "payload", "plainToken")
    if event == "endpoint.url_validation" and isinstance(plain, str) and len(plain) <= MAX_ID_LENGTH:
        proof = hmac_hex(_secret_key(trust), _checked_challenge(plain).encode())
        return VerifiedEvents("", reply={"plainToken": plain, "encryptedToken": proof})
    if event != "app_deauthorized":
        return VerifiedEvents("")
    if _nested(body, "payload", "client_id") not in (None, trust.client_id):
        return VerifiedEvents("")
    at = from_unix(body.get("event_ts"), unit=_MILLISECONDS)
    accounts = accounts_with_id(_nested(body, "payload", "user_id"))
    return VerifiedEvents(
        _sha256_hex(request.body), (ProviderEvent("zoom:app_deauthorized", Certainty.ENDED, accounts, at),)
    )


def verify_github(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    """GitHub's `github_app_authorization`: a user revoked a GitHub App's authorization.

    The signature covers no timestamp, so a delivery could be replayed: a refresh or an introspection
    has to confirm the event. docs.github.com: "Validating webhook deliveries".
    """
    _require_hmac(request, trust, "x-hub-signature-256", "sha256=")
    if request.headers.get("x-github-event", "") != "github_app_authorization":
        return VerifiedEvents("")
    body = json_object(request.body, "The body is not a JSON object.")
    if body.get("action") != "revoked":
        return VerifiedEvents("")
    sender = body.get("sender")
    accounts = (*accounts_with_id(_nested(sender, "id")), *accounts_with_id(_nested(sender, "login")))
    id = _sha256_hex(request.headers.get("x-github-delivery", "").encode(), request.body)
    return VerifiedEvents(
        id, (ProviderEvent("github:github_app_authorization.revoked", Certainty.SUSPECTED, accounts),)
    )


def verify_meta(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    """Meta's deauthorize callback, from Facebook, Instagram and Threads: a `signed_request` in a form.

    Two base64url parts; HMAC-SHA256 over the encoded second part. developers.facebook.com: "Parsing
    the signed request".
    """
    try:
        form = parse_qs(request.body.decode("ascii"), max_num_fields=20)
        (signed,) = form["signed_request"]
        signature, _, payload = signed.partition(".")
        mac = decode_base64url(signature)
    except (KeyError, ValueError):
        raise EventRejected("invalid_request", "The signed_request is missing or malformed.") from None
    expected = hmac.digest(_secret_key(trust), payload.encode(), "sha256")
    _require_signature(hmac.compare_digest(expected, mac))
    problem = "The signed_request is not an HMAC-SHA256 object."
    claims = json_in_base64url(payload, problem)
    if str(claims.get("algorithm")).upper() != "HMAC-SHA256":
        raise EventRejected("invalid_request", problem)
    accounts, at = accounts_with_id(claims.get("user_id")), from_unix(claims.get("issued_at"))
    event = ProviderEvent("meta:deauthorize", Certainty.ENDED, accounts, at)
    return VerifiedEvents(_sha256_hex(payload.encode()), (event,))


def _checked_challenge(value: str) -> str:
    """A challenge to repeat in the response. Raises EventRejected for invalid text."""
    if not is_storable_text(value):
        raise EventRejected("invalid_request", "The challenge holds NUL or a lone surrogate.")
    return value


def hmac_hex(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _require_hmac(
    request: EventRequest, trust: EventTrust, header: str, prefix: str, signed_before: str = ""
) -> None:
    """Require the HMAC-SHA256 of `signed_before` and the body, in hexadecimal after `prefix`."""
    expected = prefix + hmac_hex(_secret_key(trust), signed_before.encode() + request.body)
    sent = request.headers.get(header, "").encode("utf-8", "replace")
    _require_signature(hmac.compare_digest(expected.encode(), sent))


def _secret_key(trust: EventTrust) -> bytes:
    if trust.secret is None:
        raise EventRejected("authentication_failed", "No signing secret is configured.")
    return trust.secret.reveal().encode()


def _require_signature(signature_holds: bool) -> None:
    if not signature_holds:
        raise EventRejected("authentication_failed", "The signature is invalid.")


def _require_recent(text: str, now: datetime) -> None:
    """Raise EventRejected unless these Unix seconds, which were signed, are near `now`."""
    timestamp = from_unix(text) if text.isascii() and text.isdigit() else None
    if timestamp is None or abs(now - timestamp) > TIMESTAMP_TOLERANCE:
        raise EventRejected("invalid_request", "The timestamp is missing, or too far from now.")


def _nested(value: object, *names: str) -> Any:
    """A member of nested objects, or None."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _sha256_hex(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


VERIFIERS: dict[ReceiverKind, Callable[[EventRequest, EventTrust], VerifiedEvents]] = {
    ReceiverKind.SET: verify_set,
    ReceiverKind.SLACK: verify_slack,
    ReceiverKind.GITHUB: verify_github,
    ReceiverKind.ZOOM: verify_zoom,
    ReceiverKind.META: verify_meta,
}
