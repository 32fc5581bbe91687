"""Sends the requests to a provider, through authlib's AsyncOAuth2Client on the egress transport."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend, Egress, SendObserver
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import Pkce
from providers.definition.templates import redirect_uri_to_send, require_complete
from providers.quirks import QUIRKS, Quirk
from providers.requests.dpop import NonceCache, requires_nonce
from providers.requests.request_format import (
    OAuthClient,
    PreparedRequest,
    ProviderAccess,
    RequestFormat,
    SignedRequest,
    code_exchange_format,
    refresh_format,
    with_resources,
)
from providers.requests.request_writer import ProviderRequestAuth
from providers.responses.raw_reply import RawReply


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


AuthlibCall = Callable[[ProviderClient], Awaitable[Any]]


class SendFailed(Failure):
    """No reply was received. `sent` is False only when certainly no byte of the request was sent."""

    def __init__(self, failure: Failure, *, sent: bool) -> None:
        super().__init__(failure.code, failure.detail, retry_after=failure.retry_after, **failure.context)
        self.failure = failure
        self.sent = sent


class Sender:
    """Sends OAuth requests for any provider, each over its own TCP connection.

    Every method raises SendFailed when no reply is received, and Failure INVALID_REQUEST for a call that
    the definition doesn't support. `before_send` is called on the open TCP connection, before the first
    byte; its exception stops the request.
    """

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._nonces = NonceCache()

    async def exchange_code(
        self,
        provider: ProviderAccess,
        *,
        code: Secret,
        verifier: Secret,
        redirect_uri: str,
        resources: Sequence[str] = (),
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Exchange an authorization code for tokens (RFC 6749 section 4.1.3, RFC 7636 section 4.5)."""
        spec = provider.spec
        spec.require_usable()
        format = with_resources(code_exchange_format(provider), resources)
        sent_uri = redirect_uri_to_send(spec, provider.params, redirect_uri)
        standard = {"code": code.reveal(), "redirect_uri": sent_uri}
        if spec.pkce is not Pkce.OFF:
            standard["code_verifier"] = verifier.reveal()
        url = require_complete(spec, provider.endpoints.token_endpoint)
        auth = self._auth(provider, format)
        call = partial(
            ProviderClient.fetch_token, url=url, grant_type="authorization_code", auth=auth, **standard
        )
        return await self._send(provider, url, call, before_send)

    async def refresh(
        self,
        provider: ProviderAccess,
        *,
        refresh_token: Secret,
        redirect_uri: str | None = None,
        flow: Flow = Flow.AUTHORIZATION_CODE,
        resources: Sequence[str] = (),
        scopes: Sequence[str] = (),
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Use a refresh token (RFC 6749 section 6). Without `scopes` the new token has those granted."""
        spec, endpoints = provider.spec, provider.endpoints
        spec.require_usable(flow)
        if not spec.refresh_supported:
            detail = f"provider {spec.name} has no refresh"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="refresh_supported")
        url = require_complete(spec, endpoints.refresh_endpoint or endpoints.token_endpoint)
        format = refresh_format(provider, refresh_token, redirect_uri, scopes)
        auth = self._auth(provider, with_resources(format, resources))
        call = partial(ProviderClient.refresh_token, url=url, refresh_token=refresh_token.reveal(), auth=auth)
        return await self._send(provider, url, call, before_send)

    async def send_prepared(
        self, provider: ProviderAccess, request: PreparedRequest, *, before_send: BeforeSend | None = None
    ) -> RawReply:
        """Send a request of any other kind, such as a client grant, a revocation or an introspection."""
        url = require_complete(provider.spec, request.url)
        auth = self._auth(provider, request.format)
        call = partial(ProviderClient.fetch_token, url=url, grant_type=request.grant_type, auth=auth)
        return await self._send(provider, url, call, before_send)

    async def send_signed(
        self, provider: ProviderAccess, request: SignedRequest, *, before_send: BeforeSend | None = None
    ) -> RawReply:
        """Send a signed request of OAuth 1.0a (RFC 5849 sections 2.1 and 2.3)."""
        call = partial(
            ProviderClient.request,
            method=request.method,
            url=request.url,
            headers=request.headers,
            withhold_token=True,
        )
        return await self._send(provider, request.url, call, before_send)

    def _auth(self, provider: ProviderAccess, format: RequestFormat) -> ProviderRequestAuth:
        return ProviderRequestAuth(provider, format, self._nonces)

    async def _send(
        self, provider: ProviderAccess, url: str, call: AuthlibCall, before_send: BeforeSend | None
    ) -> RawReply:
        """Send once, and again when the server only asks for a DPoP nonce (RFC 9449 section 8).

        Such a reply spends no credential, so both requests are one use of it. `before_send` is called
        before each. Nothing is sent to a host that isn't pinned.
        """
        try:
            provider.require_host(url)
        except Failure as failure:
            raise SendFailed(failure, sent=False) from None
        reply = await self._send_once(provider, call, before_send)
        if provider.client.proof_key is not None and provider.spec.dpop and requires_nonce(reply):
            reply = await self._send_once(provider, call, before_send)
        return reply

    async def _send_once(
        self, provider: ProviderAccess, call: AuthlibCall, before_send: BeforeSend | None
    ) -> RawReply:
        spec, client = provider.spec, provider.client
        watch = SendObserver(_stop_on_failure(before_send))
        try:
            transport = self._egress.transport(watch, client.certificate_to_present())
        except Failure as failure:
            raise SendFailed(failure, sent=False) from None
        try:
            response = await call(ProviderClient(client, transport, [QUIRKS[name] for name in spec.quirks]))
        except ReplyReceived as answered:
            response = answered.response
        except SendFailed:
            raise
        except httpx2.InvalidURL:
            raise SendFailed(Failure(ErrorCode.EGRESS_REFUSED, "not a URL"), sent=False) from None
        except httpx2.TransportError as error:
            raise SendFailed(_unreachable_failure(spec, error), sent=watch.sent) from None
        except Failure as failure:
            raise SendFailed(failure, sent=watch.sent) from None
        finally:
            await transport.aclose()
        reply = RawReply.of(response)
        if client.proof_key is not None:
            self._nonces.remember(str(response.request.url), client.proof_key, reply)
        return reply


def _stop_on_failure(before_send: BeforeSend | None) -> BeforeSend | None:
    """`before_send`, whose every exception is a SendFailed on its way through authlib."""
    if before_send is None:
        return None

    def check() -> Callable[[], None] | None:
        try:
            return before_send()
        except Failure as failure:
            raise SendFailed(failure, sent=False) from failure
        except Exception as error:
            detail = "the request was stopped before sending"
            raise SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE, detail), sent=False) from error

    return check


def _unreachable_failure(spec: ProviderSpec, error: httpx2.TransportError) -> Failure:
    """The failure with the kind of error only, since the error's text may quote a URL."""
    timed_out = isinstance(error, httpx2.TimeoutException)
    kind = "did not reply in time" if timed_out else f"could not be reached ({type(error).__name__})"
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"{spec.name} {kind}", provider=spec.name)
