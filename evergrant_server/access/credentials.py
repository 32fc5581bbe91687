"""API keys and tokens, and what the store keeps of them: `evg_<kind>_<id>_<secret><checksum>`.

The secret is 256 random bits in hex. The checksum is the CRC-32 of everything before it in six digits of base
62: it lets a scanner tell a key from other text, and names a mistyped key without a look into the store. The
store keeps a MAC under a key of the ring, which covers the row: one that was written by hand is no key.
"""

import hmac
import json
import re
import secrets
import string
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zlib import crc32

from evergrant_server.core.access import App, AppCredential, AppKey, AppToken
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessTokenId, DelegationId, KeyId, Tenant, TokenId, new_id
from evergrant_server.core.oauth.authorizations import AccessToken, TokenFamily
from evergrant_server.crypto import KeyRing

LONGEST_LIFETIME = timedelta(days=5 * 365)
_KEY = re.compile(r"^(evg_(key_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")
_OUTDATED = re.compile(r"^evg_key_[0-9a-z]{22}_[0-9a-f]{64}\Z")
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ANOTHER = (
    "An admin makes another: evergrant apps key APP, or POST /v1/apps/{app}/keys; "
    "the operator one for the app admin with: python -m evergrant_server keys bootstrap --again"
)
APP_TOKEN = "evg_tok_"
_APP_TOKEN = re.compile(r"^(evg_(tok_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")
CLIENT_TOKEN = "evg_atk_"
_CLIENT_TOKEN = re.compile(r"^(evg_((?:atk|rtk)_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")
DELEGATION_TOKEN = "evg_dlg_"
_DELEGATION_TOKEN = re.compile(r"^(evg_(dlg_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")


class PresentedKey(NamedTuple):
    """A key as a request presents it. Its secret isn't verified yet."""

    id: KeyId
    secret: str


def new_key(ring: KeyRing, app: App, now: datetime, lifetime: timedelta) -> tuple[AppKey, str]:
    """A new key of the app, and its text, which isn't stored."""
    secret = secrets.token_hex(32)
    key = AppKey(
        tenant=app.tenant,
        id=KeyId(new_id("key")),
        app_id=app.id,
        secret_hash="",
        created_at=now,
        expires_at=now + lifetime,
    )
    text = f"evg_{key.id}_{secret}"
    return key.__replace__(secret_hash=key_mac(ring, key, secret)), text + checksum(text)


def parse_key(text: str) -> PresentedKey:
    """The parts of a key. Raises Failure UNAUTHENTICATED, with the repair for an outdated or mistyped key."""
    match = _KEY.match(text)
    if match is None:
        if _OUTDATED.match(text):
            why = "Keys of this form, without a checksum, are no longer accepted."
            raise Failure(ErrorCode.UNAUTHENTICATED, f"{why} {_ANOTHER}")
        raise Failure(ErrorCode.UNAUTHENTICATED, "That is no API key: one is evg_key_ and 93 characters.")
    if checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The API key is mistyped: its checksum doesn't match.")
    return PresentedKey(KeyId(match[2]), match[3])


def key_mac(ring: KeyRing, key: AppKey, secret: str) -> str:
    """What the store keeps of a key's secret: a MAC that also covers the row's tenant, app, id and expiry."""
    expires_at = (
        "" if key.expires_at is None else key.expires_at.astimezone(UTC).isoformat(" ", "microseconds")
    )
    return ring.api_key_mac(key.tenant, key.app_id, key.id, expires_at, secret)


def key_expired(key: AppKey) -> Failure:
    """The failure of a request with a key whose time is over."""
    when = "" if key.expires_at is None else f" at {key.expires_at.isoformat(timespec='seconds')}"
    return Failure(ErrorCode.UNAUTHENTICATED, f"The API key expired{when}. {_ANOTHER}")


def key_revoked(key: AppKey) -> Failure:
    """The failure of a request with a key that was revoked, for who has the whole key."""
    when = "" if key.revoked_at is None else f" at {key.revoked_at.isoformat(timespec='seconds')}"
    return Failure(ErrorCode.UNAUTHENTICATED, f"The API key was revoked{when}. {_ANOTHER}")


class PresentedToken(NamedTuple):
    """A token as a request presents it. Its secret isn't verified yet."""

    id: TokenId
    secret: str


def new_app_token(
    ring: KeyRing,
    credential: AppCredential,
    now: datetime,
    expires_at: datetime,
    confirmation: dict[str, str] | None,
) -> tuple[AppToken, str]:
    """A new token of the credential's app, and its text, which isn't stored."""
    secret = secrets.token_hex(32)
    token = AppToken(
        tenant=credential.tenant,
        id=TokenId(new_id("tok")),
        app_id=credential.app_id,
        credential_id=credential.id,
        credential_revision=credential.revision,
        method=credential.method,
        confirmation=confirmation,
        secret_hash="",
        created_at=now,
        expires_at=expires_at,
    )
    text = f"evg_{token.id}_{secret}"
    return token.__replace__(secret_hash=app_token_mac(ring, token, secret)), text + checksum(text)


def parse_app_token(text: str) -> PresentedToken:
    """The parts of a token. Raises Failure UNAUTHENTICATED."""
    match = _APP_TOKEN.match(text)
    if match is None:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    if checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is mistyped: its checksum doesn't match.")
    return PresentedToken(TokenId(match[2]), match[3])


def app_token_mac(ring: KeyRing, token: AppToken, secret: str) -> str:
    """What the store keeps of a token's secret: a MAC that also covers the row."""
    return ring.token_mac(
        *(token.tenant, token.app_id, token.id, token.credential_id, str(token.credential_revision)),
        *(token.method, json.dumps(token.confirmation, sort_keys=True)),
        token.expires_at.astimezone(UTC).isoformat(" ", "microseconds"),
        secret,
    )


def token_ended(why: str) -> Failure:
    """The failure of a request with a token that counts no longer."""
    return Failure(ErrorCode.UNAUTHENTICATED, f"{why} Get another one from POST /oauth/token.")


class PresentedText(NamedTuple):
    """A token as a request presents it. Its secret isn't verified yet."""

    id: str
    secret: str


def new_text(id: str) -> tuple[str, str]:
    """A new secret, and the text of the token with this id."""
    secret = secrets.token_hex(32)
    text = f"evg_{id}_{secret}"
    return secret, text + checksum(text)


def parse_text(text: str) -> PresentedText | None:
    """The parts of an access token or refresh token; None for any other text."""
    match = _CLIENT_TOKEN.match(text)
    return PresentedText(match[2], match[3]) if match and checksum(match[1]) == match[4] else None


def new_access_token(
    ring: KeyRing, family: TokenFamily, scopes: tuple[str, ...], now: datetime, expires_at: datetime
) -> tuple[AccessToken, str]:
    """A new access token of the family for its resource, and its text, which isn't stored."""
    id = AccessTokenId(new_id("atk"))
    secret, text = new_text(id)
    token = AccessToken(
        tenant=family.tenant,
        id=id,
        family_id=family.id,
        secret_hash="",
        resource=family.resource,
        scopes=scopes,
        created_at=now,
        expires_at=expires_at,
    )
    return token.__replace__(secret_hash=_mac(ring, token, secret)), text


def is_right(ring: KeyRing, token: AccessToken, secret: str) -> bool:
    """Whether the token's row is of this secret, in every field."""
    return hmac.compare_digest(token.secret_hash, _mac(ring, token, secret))


def _mac(ring: KeyRing, token: AccessToken, secret: str) -> str:
    moments = (
        moment.astimezone(UTC).isoformat(" ", "microseconds")
        for moment in (token.created_at, token.expires_at)
    )
    names = (token.tenant, token.id, token.family_id, token.resource, " ".join(token.scopes))
    return ring.token_mac("resource", *names, *moments, secret)


def new_delegation_token(ring: KeyRing, tenant: Tenant, id: DelegationId) -> tuple[str, str]:
    """The text of a new token, which isn't stored, and what the store keeps of it."""
    secret = secrets.token_hex(32)
    text = f"evg_{id}_{secret}"
    return text + checksum(text), ring.token_mac("delegation", tenant, id, secret)


def parse_delegation_token(text: str) -> PresentedText:
    """The parts of a delegation's token. Raises Failure UNAUTHENTICATED."""
    match = _DELEGATION_TOKEN.match(text)
    if match is None or checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    return PresentedText(match[2], match[3])


def checksum(text: str) -> str:
    left, digits = crc32(text.encode()), ""
    for _ in range(6):
        left, digit = divmod(left, 62)
        digits = _BASE62[digit] + digits
    return digits
