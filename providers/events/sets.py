"""Pushed security event tokens: RFC 8417 (the token), RFC 8935 (delivery), RFC 9493 (subjects)."""

from datetime import datetime, timedelta
from typing import Any

from joserfc.errors import JoseError

from evergrant_server.core.clock import clocks_apart
from evergrant_server.core.connections.account import EMAIL
from evergrant_server.core.provider_events import (
    TOKEN_HASH,
    TOKEN_PREFIX,
    AccountIdentifier,
    Certainty,
)
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
    from_unix,
    is_identifier,
    json_in_base64url,
    json_object,
)
from providers.responses.signing_keys import ALGORITHMS, UnusableKey, verified_payload

MEDIA_TYPE = "application/secevent+jwt"
MAX_EVENT_AGE = timedelta(days=30)  # an older event is rejected, so `jti` is kept no longer
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
    noted = {"kinds": " ".join(sorted(str(event)[:120] for event in events))}
    return VerifiedEvents(
        jti,
        read_set_events(events, claims, issued_at, trust.issuers),
        noted | ({"state": state} if state is not None else {}),
    )


def _header(token: bytes) -> dict[str, Any]:
    """The protected header, whose `alg` must be on the list of allowed algorithms."""
    if token.count(b".") != 2:
        raise EventRejected("invalid_request", "The body is not a signed token in compact form.")
    encoded = token.partition(b".")[0].decode("ascii", "replace")
    header = json_in_base64url(encoded, "The token's header can't be read.")
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
        content = verified_payload(token, header, trust.keys or ())
    except UnusableKey:
        raise EventRejected("invalid_key", "The transmitter's key is unusable.") from None
    except (JoseError, ValueError):
        raise EventRejected("authentication_failed", "The signature is invalid.") from None
    return json_object(content, "The token's claims can't be read.")


def _check_parties(claims: dict[str, Any], trust: EventTrust) -> None:
    if trust.issuer is None or claims.get("iss") != trust.issuer:
        raise EventRejected("invalid_issuer", "iss is not the transmitter of this receiver.")
    audience_claim = claims.get("aud")
    audience = [audience_claim] if isinstance(audience_claim, str) else audience_claim
    ours = set(trust.audience or (trust.client_id,))
    if not isinstance(audience, list) or not any(
        isinstance(member, str) and member in ours for member in audience
    ):
        raise EventRejected("invalid_audience", "aud doesn't name this receiver.")
    if any(name in claims for name in _ID_TOKEN_CLAIMS):
        raise EventRejected("invalid_request", "The subject belongs into the event or into sub_id.")


def _check_time(claims: dict[str, Any], now: datetime) -> datetime:
    """`iat`. An event token doesn't expire, but an old one might be a replay."""
    issued_at = _timestamp(claims.get("iat"))
    if issued_at is None:
        raise EventRejected("invalid_request", "iat is missing.")
    if issued_at - now > TIMESTAMP_TOLERANCE or now - issued_at > MAX_EVENT_AGE:
        raise EventRejected(
            "invalid_request", f"iat is in the future or too old: {clocks_apart(issued_at.timestamp(), now)}."
        )
    return issued_at


_SCHEMAS = "https://schemas.openid.net/secevent"
# RISC 1.0, CAEP 1.0, and the OAuth event types that Google sends
CERTAINTIES: dict[str, Certainty] = {
    f"{_SCHEMAS}/risc/event-type/account-disabled": Certainty.ENDED,
    f"{_SCHEMAS}/risc/event-type/account-purged": Certainty.ENDED,
    f"{_SCHEMAS}/oauth/event-type/tokens-revoked": Certainty.ENDED,
    f"{_SCHEMAS}/oauth/event-type/token-revoked": Certainty.ENDED,
    # the end of a session says little about a grant
    f"{_SCHEMAS}/risc/event-type/sessions-revoked": Certainty.SUSPECTED,
    f"{_SCHEMAS}/risc/event-type/account-credential-change-required": Certainty.SUSPECTED,
    f"{_SCHEMAS}/caep/event-type/session-revoked": Certainty.SUSPECTED,
    f"{_SCHEMAS}/caep/event-type/credential-change": Certainty.SUSPECTED,
}
# Of a person of the tenant, when its own identity provider says so: CAEP 1.0 sections 3.1 and 3.3, RISC 1.0
# section 2 (sessions-revoked is the older name of the first).
ENDS_SESSIONS = frozenset(
    {
        f"{_SCHEMAS}/caep/event-type/session-revoked",
        f"{_SCHEMAS}/caep/event-type/credential-change",
        f"{_SCHEMAS}/risc/event-type/sessions-revoked",
    }
)
ENDS_PERSON = frozenset(
    {f"{_SCHEMAS}/risc/event-type/account-disabled", f"{_SCHEMAS}/risc/event-type/account-purged"}
)
_VERIFICATION_TYPES = (
    f"{_SCHEMAS}/risc/event-type/verification",
    f"{_SCHEMAS}/ssf/event-type/verification",
)
_TOKEN_NAMES = {"prefix": TOKEN_PREFIX, "hash_base64_sha512_sha512": TOKEN_HASH}
_Accounts = tuple[frozenset[AccountIdentifier], ...]


def read_set_events(
    events: dict[str, Any], claims: dict[str, Any], issued_at: datetime, issuers: frozenset[str]
) -> tuple[ProviderEvent, ...]:
    """The events that can concern a grant, also those of unknown subjects."""
    read_events: list[ProviderEvent] = []
    for kind, event in events.items():
        weight = CERTAINTIES.get(kind)
        if weight is None or not isinstance(event, dict):
            continue
        subject = event.get("subject") or claims.get("sub_id")
        happened_at = _timestamp(event.get("event_timestamp")) or _timestamp(claims.get("toe"))
        at = min(happened_at, issued_at) if happened_at is not None else issued_at
        read_events.append(
            ProviderEvent(
                kind, weight, _accounts_of_subject(subject, issuers), at, at_is_issue_time=happened_at is None
            )
        )
    return tuple(read_events)


def verification_state(events: dict[str, Any]) -> str | None:
    """The `state` of a verification event, empty when absent; None for other events."""
    for kind in _VERIFICATION_TYPES:
        if kind in events:
            state = events[kind].get("state") if isinstance(events[kind], dict) else None
            return state[:MAX_ID_LENGTH] if isinstance(state, str) and is_storable_text(state) else ""
    return None


def _timestamp(value: Any) -> datetime | None:
    return from_unix(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _accounts_of_subject(subject: Any, issuers: frozenset[str]) -> _Accounts:
    """By `format` (RFC 9493), or `subject_type`, as its drafts and Google have it."""
    if not isinstance(subject, dict):
        return ()
    match str(subject.get("format") or subject.get("subject_type")).replace("-", "_"):
        case "iss_sub" | "id_token_claims":
            return _accounts_of_issuer(subject, issuers)
        case "email":
            email = subject.get("email")
            return (frozenset({AccountIdentifier(EMAIL, email.casefold())}),) if is_identifier(email) else ()
        case "opaque":
            return accounts_with_id(subject.get("id"))
        case "account":
            return ()  # an acct: URI is no identifier of a connection
        case "oauth_token" | "token":
            return _accounts_of_token(subject)
        case "complex":
            return _accounts_of_subject(subject.get("user"), issuers)
        case "aliases":
            each = subject.get("identifiers")
            return tuple(
                account
                for one in (each if isinstance(each, list) else ())[:10]
                for account in _accounts_of_alias(one, issuers)
            )
    return ()


def _accounts_of_alias(subject: Any, issuers: frozenset[str]) -> _Accounts:
    """RFC 9493 section 3.2.8: no aliases in aliases."""
    nested = isinstance(subject, dict) and subject.get("format") in ("aliases", "complex")
    return () if nested else _accounts_of_subject(subject, issuers)


def _accounts_of_issuer(subject: dict[str, Any], issuers: frozenset[str]) -> _Accounts:
    """A `sub` is unique only within its issuer."""
    iss, sub = subject.get("iss"), subject.get("sub")
    ours = isinstance(iss, str) and iss in issuers
    return accounts_with_id(sub) if ours and isinstance(sub, str) else ()


def _accounts_of_token(subject: dict[str, Any]) -> _Accounts:
    """Google names a refresh token by its first 16 characters or its double SHA-512."""
    name = _TOKEN_NAMES.get(str(subject.get("token_identifier_alg")))
    token = subject.get("token")
    if subject.get("token_type") != "refresh_token" or name is None:
        return ()
    return (frozenset({AccountIdentifier(name, token)}),) if is_identifier(token) else ()
