"""The OAuth client of an integration, and an authlib client that hands over the raw reply."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey, ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema_request import MUTUAL_TLS
from providers.quirks import Quirk

STANDARD_HEADERS = {"Accept": "application/json", "User-Agent": "Evergrant"}


@dataclass(frozen=True)
class OAuthClient:
    """The credentials of an integration's client. `auth` is a `ClientAuth`.

    With private_key_jwt, `key` signs an assertion for `audience` (RFC 7523 section 3), dated `now()`.
    """

    client_id: str
    client_secret: Secret | None
    auth: str
    key: ClientKey | None = None
    audience: str = ""
    now: Callable[[], datetime] = SystemClock().now
    certificate: ClientCertificate | None = None  # for the TLS methods of `auth` (RFC 8705)
    proof_key: ProofKey | None = None  # that binds the tokens (RFC 9449)

    def certificate_to_present(self) -> ClientCertificate | None:
        """The certificate for the TLS handshake. Raises Failure CLIENT_REJECTED: missing, or expired."""
        if self.auth not in MUTUAL_TLS:
            return None
        if self.certificate is None:
            why = "the integration has no client certificate, which the provider requires"
            raise Failure(ErrorCode.CLIENT_REJECTED, why, field="client_certificate")
        if self.certificate.expires_at <= self.now():
            why = f"the integration's client certificate expired on {self.certificate.expires_at:%Y-%m-%d}"
            raise Failure(ErrorCode.CLIENT_REJECTED, why, field="client_certificate")
        return self.certificate


class ReplyReceived(Exception):  # no error
    """Carries a reply past authlib's parser, which would drop status and headers."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__("the provider replied")
        self.response = response


class ProviderClient(AsyncOAuth2Client):
    """authlib's client for one request. It holds no token and never refreshes by itself.

    Its compliance hooks, which are the quirks, run before the raw reply is handed over.
    """

    def __init__(
        self, client: OAuthClient, transport: httpx2.AsyncBaseTransport, quirks: Sequence[Quirk] = ()
    ) -> None:
        super().__init__(
            client_id=client.client_id,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # the transport limits the duration
        )
        for quirk in quirks:
            for hook in quirk.hooks:
                self.register_compliance_hook(hook, quirk.reshape)

    def parse_response_token(self, resp: httpx2.Response) -> dict[str, object]:
        raise ReplyReceived(resp)
