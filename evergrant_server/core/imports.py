"""A grant that somebody else got: its tokens and facts, on the way from the API to the worker."""

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.grant import TokenSet
from evergrant_server.core.secret import Secret


class ImportedTokens(BaseModel):
    """Never a message: its secrets refuse to be serialised, except into another secret.

    `expires_at` None means that the access token never expires; a token whose expiry nobody
    knows is said to expire when it was received.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"
    expires_at: datetime | None
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
                    "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
                    "metadata": self.metadata,
                }
            )
        )

    @classmethod
    def from_secret(cls, text: Secret) -> "ImportedTokens":
        return cls.model_validate(json.loads(text.reveal()))

    def obtained_at(self, received_at: datetime) -> datetime:
        """When the provider may be said to have issued it: never after its end."""
        return received_at if self.expires_at is None else min(received_at, self.expires_at)

    def token_set(self, obtained_at: datetime) -> TokenSet:
        left = None if self.expires_at is None else (self.expires_at - obtained_at).total_seconds()
        return TokenSet(
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            token_type=self.token_type,
            expires_in=left,
            metadata=self.metadata,
        )
