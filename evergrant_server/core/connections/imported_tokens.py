"""Tokens that Evergrant didn't request itself, and their facts, on the way from the API to the worker."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from evergrant_server.core.clock import add_time
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.secret import SealableModel, Secret

INSTALL_WITHIN = timedelta(days=7)  # a worker that stays away longer finds the connection expired


class ImportedTokens(SealableModel):
    """`expires_at` None means that the access token never expires; a token of unknown expiry
    counts as expired since it was received.
    """

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"
    expires_at: datetime | None
    refresh_expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None  # None: the consent's
    issued_at: datetime | None = None  # None: when it was received
    metadata: dict[str, Any] = Field(default_factory=dict)

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


def _after(at: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else add_time(at, seconds)


def _seconds(since: datetime, until: datetime | None) -> float | None:
    return None if until is None else (until - since).total_seconds()
