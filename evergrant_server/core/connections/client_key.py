"""A client key, which signs assertions in place of a client secret (RFC 7523 section 2.2)."""

import json

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.secret import Secret


class ClientKey(BaseModel):
    """`private` is PEM (PKCS #8 or older) or a JWK; `id` is the `kid` the provider knows it by.

    Never a message: its secret refuses to be serialised, except into another secret.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    private: Secret
    id: str | None = None

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        return Secret(json.dumps({"private": self.private.reveal(), "id": self.id}))

    @classmethod
    def from_secret(cls, text: Secret) -> "ClientKey":
        return cls.model_validate(json.loads(text.reveal()))
