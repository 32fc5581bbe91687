"""The meaning of a security event token's events: a table of types, and the accounts of their subjects."""

from datetime import datetime
from typing import Any

from evergrant_server.core.provider_events.account_identifiers import EMAIL, TOKEN_HASH, TOKEN_PREFIX
from evergrant_server.core.provider_events.external_revocation import Certainty
from evergrant_server.core.provider_events.receivers import AccountIdentifier
from evergrant_server.core.text import is_storable_text
from providers.events.base import MAX_ID_LENGTH, ProviderEvent, accounts_with_id, from_unix, is_identifier

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
    found: list[ProviderEvent] = []
    for kind, event in events.items():
        weight = CERTAINTIES.get(kind)
        if weight is None or not isinstance(event, dict):
            continue
        subject = event.get("subject") or claims.get("sub_id")
        happened_at = _timestamp(event.get("event_timestamp")) or _timestamp(claims.get("toe"))
        at = min(happened_at, issued_at) if happened_at is not None else issued_at
        found.append(
            ProviderEvent(
                kind, weight, _accounts_of_subject(subject, issuers), at, at_is_issue_time=happened_at is None
            )
        )
    return tuple(found)


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
            return _accounts_of_email(subject.get("email"))
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
                it
                for one in (each if isinstance(each, list) else ())[:10]
                for it in _accounts_of_alias(one, issuers)
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


def _accounts_of_email(email: Any) -> _Accounts:
    return (frozenset({AccountIdentifier(EMAIL, email.casefold())}),) if is_identifier(email) else ()


def _accounts_of_token(subject: dict[str, Any]) -> _Accounts:
    """Google names a refresh token by its first 16 characters or its double SHA-512."""
    name = _TOKEN_NAMES.get(str(subject.get("token_identifier_alg")))
    token = subject.get("token")
    if subject.get("token_type") != "refresh_token" or name is None:
        return ()
    return (frozenset({AccountIdentifier(name, token)}),) if is_identifier(token) else ()
