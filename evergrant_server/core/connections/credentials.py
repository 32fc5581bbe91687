"""Key pairs and token pairs that are sealed as one text each. Never a message: they are secrets. Pure."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qsl, urlencode

from evergrant_server.core.secret import SealableModel, Secret


class ClientKey(SealableModel):
    """Signs assertions in place of a client secret (RFC 7523 section 2.2).

    `private` is PEM (PKCS #8 or older) or a JWK; `id` is the `kid` the provider knows it by.
    """

    private: Secret
    id: str | None = None


class ClientCertificate(SealableModel):
    """Evergrant authenticates with it at a provider (RFC 8705 section 2).

    `certificate` is PEM, ours first and then what it was signed with; `private` is its key, as PEM.
    """

    certificate: str
    private: Secret
    expires_at: datetime


DPOP_TOKEN_TYPE = "DPoP"  # the token type (RFC 9449 section 5)
DPOP_ALGORITHM = "ES256"


class ProofKey(SealableModel):
    """The P-256 key that a connection's tokens are bound to: useless without a proof by it (RFC 9449).

    `thumbprint` is RFC 7638's, by which authorization servers name it (`jkt`).
    """

    private: Secret  # a JWK
    public: dict[str, str]
    thumbprint: str


OAUTH1 = "OAuth1"  # the token type of a grant whose requests are signed one by one
_TOKEN, _SECRET = "oauth_token", "oauth_token_secret"


@dataclass(frozen=True)
class TokenPair:
    """OAuth 1.0a credentials (RFC 5849 section 1.1), sealed as a reply writes them. The secret stays here."""

    token: Secret
    secret: Secret

    def as_secret(self) -> Secret:
        return Secret(urlencode({_TOKEN: self.token.reveal(), _SECRET: self.secret.reveal()}))

    @classmethod
    def from_secret(cls, text: Secret) -> "TokenPair":
        """Raises KeyError for a text that is no pair."""
        fields = dict(parse_qsl(text.reveal(), keep_blank_values=True))
        return cls(Secret(fields[_TOKEN]), Secret(fields[_SECRET]))
