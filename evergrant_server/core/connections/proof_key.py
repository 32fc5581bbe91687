"""The key that a connection's tokens are bound to: they are useless without a proof by it (RFC 9449)."""

from evergrant_server.core.secret import SealableModel, Secret

DPOP_TOKEN_TYPE = "DPoP"  # the token type (RFC 9449 section 5)
DPOP_ALGORITHM = "ES256"


class ProofKey(SealableModel):
    """A P-256 key pair. Never a message: its private half refuses to be serialised, but into a secret.

    `thumbprint` is RFC 7638's, by which authorization servers name it (`jkt`).
    """

    private: Secret  # a JWK
    public: dict[str, str]
    thumbprint: str
