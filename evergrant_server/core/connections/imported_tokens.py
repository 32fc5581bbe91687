"""Tokens that Evergrant didn't request itself, and their facts, on the way from the API to the worker."""

import json
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.clock import add_time
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.secret import Secret

INSTALL_WITHIN = timedelta(days=7)  # a worker that stays away longer finds the connection expired


class ImportedTokens(BaseModel):
    """Never a message: its secrets refuse to be serialised, except into another secret.

    `expires_at` None means that the access token never expires; a token of unknown expiry
    counts as expired since it was received.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"
    expires_at: datetime | None
    refresh_expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None  # None: the consent's
    issued_at: datetime | None = None  # None: when it was received
    metadata: dict[str, Any] = {}

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        refresh = self.refresh_token
        return Secret(
            json.dumps(
                {
                    "access_token": self.access_token.reveal(),
                    "refresh_token": None if refresh is None else refresh.reveal(),
                    "token_type": self.token_type,
                    "expires_at": _text(self.expires_at),
                    "refresh_expires_at": _text(self.refresh_expires_at),
                    "scopes": self.scopes,
                    "issued_at": _text(self.issued_at),
                    "metadata": self.metadata,
                }
            )
        )

    @classmethod
    def from_token_set(cls, tokens: TokenSet, at: datetime) -> "ImportedTokens":
        """Those of a reply that was requested `at`."""
        return cls(
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            token_type=tokens.token_type,
            expires_at=_after(at, tokens.expires_in),
            refresh_expires_at=_after(at, tokens.refresh_expires_in),
            scopes=tokens.scopes,
            metadata=tokens.metadata,
        )

    @classmethod
    def from_secret(cls, text: Secret) -> "ImportedTokens":
        return cls.model_validate(json.loads(text.reveal()))

    def obtained_at(self, received_at: datetime) -> datetime:
        """When the provider issued it, as far as is known; never after its end."""
        issued_at = self.issued_at or received_at
        return issued_at if self.expires_at is None else min(issued_at, self.expires_at)

    def token_set(self, obtained_at: datetime) -> TokenSet:
        left = _seconds(obtained_at, self.expires_at)
        return TokenSet(
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            token_type=self.token_type,
            expires_in=left,
            refresh_expires_in=_seconds(obtained_at, self.refresh_expires_at),
            scopes=self.scopes,
            metadata=self.metadata,
        )


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _after(at: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else add_time(at, seconds)


def _seconds(since: datetime, until: datetime | None) -> float | None:
    return None if until is None else (until - since).total_seconds()
