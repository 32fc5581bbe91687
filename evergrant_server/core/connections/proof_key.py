"""The key that a connection's tokens are bound to: they are useless without a proof by it (RFC 9449)."""

import json

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.secret import Secret

DPOP_TOKEN_TYPE = "DPoP"  # the token type (RFC 9449 section 5)
DPOP_ALGORITHM = "ES256"


class ProofKey(BaseModel):
    """A P-256 key pair. Never a message: its private half refuses to be serialised, but into a secret.

    `thumbprint` is RFC 7638's, by which authorization servers name it (`jkt`).
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    private: Secret  # a JWK
    public: dict[str, str]
    thumbprint: str

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        plain = {"private": self.private.reveal(), "public": self.public, "thumbprint": self.thumbprint}
        return Secret(json.dumps(plain))

    @classmethod
    def from_secret(cls, text: Secret) -> "ProofKey":
        return cls.model_validate(json.loads(text.reveal()))
