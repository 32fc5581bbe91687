"""HTTP clients to a connection's API through Evergrant's gateway: no token reaches this process."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING

import httpx2

from evergrant.api.call import error_from
from evergrant.errors import BadRequest
from evergrant.origins import is_loopback, origin_of

if TYPE_CHECKING:
    import httpx

_SILENCE_S = 310.0  # a little longer than the gateway waits for the provider's API
_REPAIR = "Set EVERGRANT_GATEWAY_URL; beside make dev it is http://127.0.0.1:8483."
ERROR_HEADER = "evergrant-error"  # on the gateway's own answers: a provider's have none


def gateway_address(
    url: str | None, *, allow_plain_http: bool = False, environ: Mapping[str, str] | None = None
) -> str:
    """The gateway's URL, by default EVERGRANT_GATEWAY_URL. Raises BadRequest."""
    env = os.environ if environ is None else environ
    base = url or env.get("EVERGRANT_GATEWAY_URL")
    if not base:
        raise BadRequest("there is no URL of the gateway", code="url_missing", repair=_REPAIR)
    try:
        parsed = httpx2.URL(base)
    except (httpx2.InvalidURL, TypeError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise BadRequest("the gateway's URL is not an http(s) URL", code="url_invalid", repair=_REPAIR)
    plain = allow_plain_http or env.get("EVERGRANT_ALLOW_PLAIN_HTTP") == "1"
    if parsed.scheme == "http" and not is_loopback(parsed.host) and not plain:
        raise BadRequest(
            f"plain http to {parsed.host} would show the API key to the network",
            code="plain_http_refused",
            repair="Use https, or accept it with EVERGRANT_ALLOW_PLAIN_HTTP=1.",
        )
    return base.rstrip("/")


class GatewayAuth(httpx2.Auth):
    """Puts the app's own credential on requests to the gateway, and on no others."""

    def __init__(self, gateway: str, credential: Callable[[], str | Awaitable[str]]) -> None:
        self.gateway, self._origin = gateway, origin_of(httpx2.URL(gateway))
        self._credential = credential

    def mcp_url(self, connection_id: str) -> str:
        """Where an MCP client reaches the connection's server."""
        return f"{self.gateway}/mcp/{connection_id}"

    def for_httpx(self) -> "httpx.Auth":
        """The same for httpx's clients."""
        from evergrant.frameworks.httpx import HttpxAuth

        return HttpxAuth(self)

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        self._require_gateway(request)
        credential = self._credential()
        assert isinstance(credential, str)
        request.headers["authorization"] = f"Bearer {credential}"
        yield request

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        self._require_gateway(request)
        credential = self._credential()
        assert not isinstance(credential, str)
        request.headers["authorization"] = f"Bearer {await credential}"
        yield request

    def _require_gateway(self, request: httpx2.Request) -> None:
        if origin_of(request.url) != self._origin:
            why = "this client reaches the connection's API alone: give a path, not a URL"
            raise BadRequest(why, code="origin_invalid", repair="Begin the path with /.")


def client_options(connection_id: str, auth: GatewayAuth) -> dict[str, object]:
    """What both kinds of clients are made with."""
    return {
        "base_url": f"{auth.gateway}/v1/proxy/{connection_id}",
        "auth": auth,
        "trust_env": False,  # a proxy of the environment must not see the API key
        "follow_redirects": False,  # a redirect is the provider's answer
        "timeout": httpx2.Timeout(_SILENCE_S, connect=10.0),
    }


def raise_own_error(response: httpx2.Response) -> None:
    """Raise the EvergrantError of an answer of the gateway's own. A provider's answer passes."""
    if ERROR_HEADER in response.headers:
        response.read()
        raise error_from(response)


async def raise_own_error_async(response: httpx2.Response) -> None:
    """As `raise_own_error`."""
    if ERROR_HEADER in response.headers:
        await response.aread()
        raise error_from(response)
