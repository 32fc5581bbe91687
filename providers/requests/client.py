"""Our OAuth client at a provider, and authlib's client bent to hand over the raw reply."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.client_certificate import ClientCertificate
from evergrant_server.core.connections.client_key import ClientKey
from evergrant_server.core.connections.proof_key import ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema_request import MUTUAL_TLS


@dataclass(frozen=True)
class OAuthClient:
    """Who we are at a provider. `auth` is a `ClientAuth`.

    `key` signs where `auth` is private_key_jwt, for the one `audience` the provider knows itself
    by (RFC 7523 section 3), at the time that `now` tells.
    """

    client_id: str
    client_secret: Secret | None
    auth: str
    key: ClientKey | None = None
    audience: str = ""
    now: Callable[[], datetime] = SystemClock().now
    certificate: ClientCertificate | None = None  # presented where `auth` is a TLS one (RFC 8705)
    proof_key: ProofKey | None = None  # what tokens are bound to, where they are (RFC 9449)

    def certificate_to_present(self) -> ClientCertificate | None:
        """What the handshake says who we are with. Raises Failure CLIENT_REJECTED: none, or it is over."""
        if self.auth not in MUTUAL_TLS:
            return None
        if self.certificate is None:
            why = "the integration has no client certificate, and the provider wants one"
            raise Failure(ErrorCode.CLIENT_REJECTED, why, field="client_certificate")
        if self.certificate.expires_at <= self.now():
            why = f"the integration's client certificate is over since {self.certificate.expires_at:%Y-%m-%d}"
            raise Failure(ErrorCode.CLIENT_REJECTED, why, field="client_certificate")
        return self.certificate


class ReplyReceived(Exception):  # carries a reply out of authlib; nothing went wrong
    """A reply on its way past authlib's own parser, which would drop status and headers."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__("the provider answered")
        self.response = response


class ProviderClient(AsyncOAuth2Client):
    """authlib's client for one request. It holds no token, no scope, and never refreshes by itself.

    Its compliance hooks run (that is where quirks are); then, where authlib would parse the
    reply, the reply leaves whole, so that one judge of ours reads it with its Retry-After.
    """

    def __init__(self, client: OAuthClient, transport: httpx2.AsyncBaseTransport) -> None:
        super().__init__(
            client_id=client.client_id,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # the transport limits the whole answer
        )

    def parse_response_token(self, resp: httpx2.Response) -> dict[str, object]:
        raise ReplyReceived(resp)
