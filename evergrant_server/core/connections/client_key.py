"""A client key, which signs assertions in place of a client secret (RFC 7523 section 2.2)."""

from evergrant_server.core.secret import SealableModel, Secret


class ClientKey(SealableModel):
    """`private` is PEM (PKCS #8 or older) or a JWK; `id` is the `kid` the provider knows it by."""

    private: Secret
    id: str | None = None
