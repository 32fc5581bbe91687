"""What a subject authorized: a code, the family of tokens that it begins, and those tokens.

An authorization is for one resource of one gateway, one subject, and one app as which the client acts. Its
tokens are a family: two authorizations of the same client and subject are two families.
"""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.ids import (
    AccessTokenId,
    AppId,
    AuthorizationCodeId,
    ConnectionId,
    RefreshTokenId,
    TenantRow,
    TokenFamilyId,
)


class Authorization(TenantRow):
    """Who may do what. `rule` is the login by which the subject was recognized: another one ends it."""

    client_id: str
    app_id: AppId
    subject: str
    resource: str
    connection_id: ConnectionId | None = None  # None: every connection of the subject
    scopes: tuple[str, ...] = ()
    rule: str | None = None
    created_at: datetime


class AuthorizationCode(Authorization):
    """A code of RFC 6749 section 4.1.2, found by its hash, with the S256 challenge of RFC 7636."""

    id: AuthorizationCodeId
    code_hash: str
    redirect_uri: str
    challenge: str
    expires_at: datetime
    used_at: datetime | None = None
    family_id: TokenFamilyId | None = None  # that its first use began

    @staticmethod
    def hash_of(code: str) -> str:
        """What a code is found by. It has 256 bits: a plain hash is enough."""
        return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()


class FamilyEnd(StrEnum):
    """Why a family has ended."""

    REVOKED = "revoked"  # by its client (RFC 7009)
    ENDED = "ended"  # by an admin
    CODE_REPLAYED = "code_replayed"  # RFC 6749 section 4.1.2
    TOKEN_REPLAYED = "token_replayed"  # RFC 9700 section 4.14.2


class TokenFamily(Authorization):
    """The tokens of one authorization. `bound`: its client proves a key, so that its one refresh token stays.

    `replays` counts the repetitions of used refresh tokens that were answered, since its beginning.
    """

    id: TokenFamilyId
    bound: bool
    used_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    end: FamilyEnd | None = None
    replays: int = 0

    @property
    def named(self) -> dict[str, str]:
        """What an audit record of its use says."""
        return {"client": self.client_id, "subject": self.subject, "family": self.id}

    def is_live(self, now: datetime, idle: timedelta) -> bool:
        """Whether its refresh tokens are accepted: it has neither ended, nor grown too old, nor lain idle."""
        return self.ended_at is None and now < self.expires_at and now < self.used_at + idle


AT_ONCE = timedelta(minutes=1)  # in which processes that share a file of tokens refresh with the same one
LATE_REPLAYS = 3  # how often one comes again later than that


class RefreshToken(TenantRow):
    """A refresh token. Of its secret only a MAC is kept; of its successor, the sealed text, so that a
    repetition gets the same one. `late_replays` are those of `replays` that came later than AT_ONCE."""

    id: RefreshTokenId
    family_id: TokenFamilyId
    secret_hash: str
    created_at: datetime
    rotated_at: datetime | None = None
    successor_id: RefreshTokenId | None = None
    replays: int = 0
    late_replays: int = 0

    def is_stolen(self, now: datetime, window: timedelta, replays: int) -> bool:
        """Whether a used token comes again too late, or too often: each process of a client that reads one
        file of tokens sends it once, and soon."""
        if self.rotated_at is None:
            return False
        late = self._is_late(now) and self.late_replays >= LATE_REPLAYS
        return late or now - self.rotated_at >= window or self.replays >= replays

    def replayed(self, now: datetime) -> "RefreshToken":
        return self.__replace__(replays=self.replays + 1, late_replays=self.late_replays + self._is_late(now))

    def _is_late(self, now: datetime) -> bool:
        return self.rotated_at is not None and now - self.rotated_at >= AT_ONCE


class AccessToken(TenantRow):
    """An opaque access token for one resource. Of its secret only a MAC is kept, over every field."""

    id: AccessTokenId
    family_id: TokenFamilyId
    secret_hash: str
    resource: str
    scopes: tuple[str, ...] = ()
    created_at: datetime
    expires_at: datetime
