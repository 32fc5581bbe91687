"""OAuth 1.0a credentials: a token and its secret, which never leaves (RFC 5849 section 1.1). Pure."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from evergrant_server.core.secret import Secret

OAUTH1 = "OAuth1"  # the token type of a grant whose requests are signed one by one
_TOKEN, _SECRET = "oauth_token", "oauth_token_secret"


@dataclass(frozen=True)
class TokenPair:
    """Temporary credentials or token credentials: sealed as one text, as a reply writes them."""

    token: Secret
    secret: Secret

    def as_secret(self) -> Secret:
        return Secret(urlencode({_TOKEN: self.token.reveal(), _SECRET: self.secret.reveal()}))

    @classmethod
    def from_secret(cls, text: Secret) -> "TokenPair":
        """Raises KeyError for a text that is no pair."""
        fields = dict(parse_qsl(text.reveal(), keep_blank_values=True))
        return cls(Secret(fields[_TOKEN]), Secret(fields[_SECRET]))
