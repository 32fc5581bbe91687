"""Our OAuth client at a provider, and authlib's client bent to hand over the raw reply."""

from dataclasses import dataclass

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client

from evergrant_server.core.secret import Secret


@dataclass(frozen=True)
class OAuthClient:
    """Who we are at a provider. `auth` is client_secret_basic, client_secret_post or none."""

    client_id: str
    client_secret: Secret | None
    auth: str


class Answered(Exception):  # carries a reply out of authlib; nothing went wrong
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
        raise Answered(resp)
