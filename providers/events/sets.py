"""Pushed security event tokens: RFC 8417 (the token), RFC 8935 (delivery), RFC 9493 (subjects)."""

import base64
import binascii
import json
from datetime import datetime, timedelta
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from evergrant_server.core.text import is_storable_text
from providers.events.base import (
    MAX_ID_LENGTH,
    TIMESTAMP_TOLERANCE,
    EventRejected,
    EventRequest,
    EventTrust,
    UnknownKey,
    VerifiedEvents,
    from_unix,
    is_identifier,
)
from providers.events.set_events import read_set_events, verification_state

MEDIA_TYPE = "application/secevent+jwt"
MAX_EVENT_AGE = timedelta(days=30)  # an older event is rejected, so `jti` is kept no longer
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_KEY_TYPES = {"RSA": RSAKey, "EC": ECKey}
_ID_TOKEN_CLAIMS = ("sub", "nonce")  # so that an id token isn't accepted as an event


def verify_set(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    """Verify a security event token. Raises EventRejected (RFC 8935 section 2.4) or UnknownKey."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise EventRejected("invalid_request", f"The content type must be {MEDIA_TYPE}.")
    token = request.body.strip()
    header = _header(token)
    claims = _claims(token, header, trust)
    if header.get("typ") is None and "exp" in claims:
        raise EventRejected("invalid_request", "typ must be secevent+jwt.")
    _check_parties(claims, trust)
    issued_at = _check_time(claims, request.now)
    jti = claims.get("jti")
    if not is_identifier(jti):
        raise EventRejected(
            "invalid_request", f"jti is missing, or no text of up to {MAX_ID_LENGTH} characters."
        )
    events = claims.get("events")
    if not isinstance(events, dict) or not 0 < len(events) <= 20 or not all(map(is_storable_text, events)):
        raise EventRejected("invalid_request", "events must be an object of 1 to 20 named members.")
    state = verification_state(events)
    noted = {"kinds": " ".join(sorted(str(it)[:120] for it in events))}
    return VerifiedEvents(
        jti,
        read_set_events(events, claims, issued_at, trust.issuers),
        noted | ({"state": state} if state is not None else {}),
    )


def _header(token: bytes) -> dict[str, Any]:
    """The protected header, whose `alg` must be on the list of allowed algorithms."""
    if token.count(b".") != 2:
        raise EventRejected("invalid_request", "The body is not a signed token in compact form.")
    try:
        header = json.loads(_decode_base64url(token.partition(b".")[0]))
    except (ValueError, binascii.Error, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise EventRejected("invalid_request", "The token's header can't be read.")
    if header.get("alg") not in ALGORITHMS:
        raise EventRejected("invalid_key", "alg must be an asymmetric signature.")
    if "crit" in header or "b64" in header:
        raise EventRejected("invalid_request", "The header has unknown critical members.")
    typ = header.get("typ")
    if typ is not None and str(typ).lower().removeprefix("application/") != "secevent+jwt":
        raise EventRejected("invalid_request", "typ must be secevent+jwt.")
    return header


def _claims(token: bytes, header: dict[str, Any], trust: EventTrust) -> dict[str, Any]:
    try:
        content = jws.deserialize_compact(token, _key(header, trust), algorithms=[header["alg"]]).payload
    except (JoseError, ValueError):
        raise EventRejected("authentication_failed", "The signature is invalid.") from None
    try:
        claims = json.loads(content)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise EventRejected("invalid_request", "The token's claims can't be read.")
    return claims


def _key(header: dict[str, Any], trust: EventTrust) -> RSAKey | ECKey:
    """The pinned key that the header names, of the algorithm's type."""
    kid, family = header.get("kid"), "EC" if header["alg"].startswith("ES") else "RSA"
    usable = [
        key
        for key in trust.keys or ()
        if key.get("kty") == family
        and key.get("use") in (None, "sig")
        and _allows_algorithm(key, header["alg"])
    ]
    named = [key for key in usable if key.get("kid") == kid] if kid is not None else usable
    if len(named) != 1:
        raise UnknownKey
    try:
        return _KEY_TYPES[family].import_key(named[0])
    except (JoseError, ValueError, KeyError):
        raise EventRejected("invalid_key", "The transmitter's key is unusable.") from None


def _allows_algorithm(key: dict[str, Any], alg: str) -> bool:
    return key.get("alg") in (None, alg)


def _check_parties(claims: dict[str, Any], trust: EventTrust) -> None:
    if trust.issuer is None or claims.get("iss") != trust.issuer:
        raise EventRejected("invalid_issuer", "iss is not the transmitter of this receiver.")
    given = claims.get("aud")
    audience = [given] if isinstance(given, str) else given
    ours = set(trust.audience or (trust.client_id,))
    if not isinstance(audience, list) or not any(isinstance(it, str) and it in ours for it in audience):
        raise EventRejected("invalid_audience", "aud doesn't name this receiver.")
    if any(name in claims for name in _ID_TOKEN_CLAIMS):
        raise EventRejected("invalid_request", "The subject belongs into the event or into sub_id.")


def _check_time(claims: dict[str, Any], now: datetime) -> datetime:
    """`iat`. An event token doesn't expire, but an old one might be a replay."""
    iat = claims.get("iat")
    issued_at = from_unix(iat) if isinstance(iat, int | float) and not isinstance(iat, bool) else None
    if issued_at is None:
        raise EventRejected("invalid_request", "iat is missing.")
    if issued_at - now > TIMESTAMP_TOLERANCE or now - issued_at > MAX_EVENT_AGE:
        raise EventRejected("invalid_request", "iat is in the future or too old.")
    return issued_at


def _decode_base64url(part: bytes) -> bytes:
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
