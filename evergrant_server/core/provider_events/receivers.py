"""Receivers of a provider's security events, and by what it identifies an account. Pure.

A receiver belongs to one integration, and an event touches that integration's connections only.
No secret is here: the signing secret stays in the store.
"""

import base64
import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from evergrant_server.core.connections.consent import claims_of
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import IntegrationId, ReceiverId, TenantRow
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text

ACCOUNT_IS_SUBJECT = "subject"
ACCOUNT_IS_SUB = "sub"


class ReceiverKind(StrEnum):
    """How an event is signed, and what its words mean."""

    SET = "set"  # security event tokens, pushed (RFC 8417, RFC 8935): RISC, CAEP
    SLACK = "slack"
    GITHUB = "github"
    ZOOM = "zoom"
    META = "meta"


class AccountIdentifier(NamedTuple):
    """By what a provider may name an account or a token. Stored as a keyed hash."""

    name: str
    value: str


class Receiver(TenantRow):
    """Whose events are accepted. `account_in` says where a connection has the account's id: the id
    token's `sub`, the connection's `subject`, or the name of a fact of its grant."""

    id: ReceiverId
    integration_id: IntegrationId
    kind: ReceiverKind
    issuer: str | None = None
    jwks_uri: str | None = None
    audience: tuple[str, ...] = ()  # empty: the integration's client id
    account_in: str = ACCOUNT_IS_SUB
    keys: tuple[dict[str, Any], ...] | None = None  # public keys, as they were fetched
    keys_at: datetime | None = None
    keys_requested_at: datetime | None = None
    keys_problem: str | None = None
    created_at: datetime
    changed_at: datetime


SUB, EMAIL = "sub", "email"
TOKEN_PREFIX, TOKEN_HASH = "refresh_token_prefix", "refresh_token_sha512_sha512"
_PREFIX = 16  # characters, as Google counts them
_LONGEST = 256


def fact_name(path: str) -> str:
    """The identifier's name for a fact at this path."""
    return f"fact:{path}"


def account_identifiers_of(tokens: TokenSet, grant: Grant) -> dict[str, AccountIdentifier]:
    """Identifiers by name. A reply without an id token or refresh token has none of those."""
    found = {fact_name(path): str(value) for path, value in grant.metadata.items() if _is_id(value)}
    if tokens.id_token is not None:
        found |= _of_id_token(tokens.id_token)
    if tokens.refresh_token is not None:
        found |= _of_refresh_token(tokens.refresh_token)
    known = ((name, value) for name, value in found.items() if 0 < len(value) <= _LONGEST)
    return {name: AccountIdentifier(name, value) for name, value in known if is_storable_text(value)}


def unreplaced_names(tokens: TokenSet, origin: Origin) -> frozenset[str]:
    """Names whose older identifiers stay, since this reply lacks the token that they come from."""
    if origin is Origin.NEW:
        return frozenset()
    of_id = () if tokens.id_token is not None else (SUB, EMAIL)
    of_refresh = () if tokens.refresh_token is not None else (TOKEN_PREFIX, TOKEN_HASH)
    return frozenset((*of_id, *of_refresh))


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _of_id_token(id_token: Secret) -> dict[str, str]:
    claims = claims_of(id_token)
    sub, email, verified = claims.get(SUB), claims.get(EMAIL), claims.get("email_verified")
    found = {SUB: sub} if isinstance(sub, str) else {}
    if isinstance(email, str) and verified is True:
        found[EMAIL] = email.casefold()
    return found


def _of_refresh_token(token: Secret) -> dict[str, str]:
    """As providers name a token without revealing it; a prefix would reveal a short one."""
    raw = token.reveal()
    twice = hashlib.sha512(hashlib.sha512(raw.encode()).digest()).digest()
    found = {TOKEN_HASH: base64.b64encode(twice).decode()}
    if len(raw) > 2 * _PREFIX:
        found[TOKEN_PREFIX] = raw[:_PREFIX]
    return found
