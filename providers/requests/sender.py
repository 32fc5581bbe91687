"""Sends: code exchange, refresh, minting, revocation, introspection. What answers mean is for `replies`.

Every request leaves through authlib's AsyncOAuth2Client on the egress transport.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx2

from evergrant_server.core.access import Endpoints
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend, Egress, SendObserver
from providers.definition.schema import ProviderSpec
from providers.definition.schema_lifecycle import RefreshSpec
from providers.definition.schema_request import Pkce
from providers.definition.templates import checked_params, fill_template, fill_url_encoded, require_complete
from providers.oauth1.flow import SignedRequest
from providers.quirks import QUIRKS, Quirk
from providers.requests.authorization_url import redirect_uri_to_send
from providers.requests.client import OAuthClient, ProviderClient, ReplyReceived
from providers.requests.client_grants import PreparedRequest
from providers.requests.dpop import NonceCache, requires_nonce
from providers.requests.request_format import (
    access_token_exchange_format,
    code_exchange_format,
    refresh_format,
    revocation_format,
    with_resources,
)
from providers.requests.wire import ProviderRequestAuth, RequestFormat
from providers.responses.raw_reply import RawReply

Params = Mapping[str, str]


class SendFailed(Failure):
    """No answer came. `sent` is False only when it is certain that no byte of the request left."""

    def __init__(self, failure: Failure, *, sent: bool) -> None:
        super().__init__(failure.code, failure.detail, retry_after=failure.retry_after, **failure.context)
        self.failure = failure
        self.sent = sent


class Sender:
    """Sends OAuth requests for any provider, one connection each.

    Every method raises SendFailed when no answer came, and Failure INVALID_REQUEST before
    anything is sent when the definition and the call don't fit. `before_send` is called when
    the connection is open, just before the first byte; what it raises stops the request.
    `params` are the integration's template parameters, for definitions that use them here.
    """

    def __init__(self, egress: Egress, quirks: Mapping[str, Quirk] = QUIRKS) -> None:
        self._egress = egress
        self._quirks = quirks
        self._nonces = NonceCache()

    async def exchange_code(
        self,
        spec: ProviderSpec,
        endpoints: Endpoints,
        client: OAuthClient,
        *,
        code: Secret,
        verifier: Secret,
        redirect_uri: str,
        params: Params | None = None,
        resources: Sequence[str] = (),
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Swap an authorization code for tokens (RFC 6749 section 4.1.3, RFC 7636 section 4.5)."""
        spec.require_usable()
        url = require_complete(spec, endpoints.token_endpoint)
        params = params or {}
        dialect = with_resources(code_exchange_format(spec, client, params), resources)
        standard = {"code": code.reveal(), "redirect_uri": redirect_uri_to_send(spec, params, redirect_uri)}
        if spec.pkce is not Pkce.OFF:
            standard["code_verifier"] = verifier.reveal()

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            auth = self._request_auth(spec, client, dialect)
            return authlib.fetch_token(url, grant_type="authorization_code", auth=auth, **standard)

        return await self._send(spec, client, ask, before_send)

    async def refresh(
        self,
        spec: ProviderSpec,
        endpoints: Endpoints,
        client: OAuthClient,
        *,
        refresh_token: Secret,
        scopes: Sequence[str] = (),
        redirect_uri: str | None = None,
        params: Params | None = None,
        flow: Flow = Flow.AUTHORIZATION_CODE,
        resources: Sequence[str] = (),
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Use a refresh token (RFC 6749 section 6). `scopes` go along only where the provider wants them."""
        spec.require_usable(flow)
        if not spec.refresh_supported:
            detail = f"provider {spec.name} has no refresh"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="refresh_supported")
        url = require_complete(spec, endpoints.refresh_endpoint or endpoints.token_endpoint)
        dialect = refresh_format(spec, client, refresh_token, redirect_uri, params or {})
        dialect = with_resources(dialect, resources)
        standard = {"scope": spec.scope_separator.join(scopes)} if spec.refresh_sends_scope and scopes else {}

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            return authlib.refresh_token(
                url,
                refresh_token=refresh_token.reveal(),
                auth=self._request_auth(spec, client, dialect),
                **standard,
            )

        return await self._send(spec, client, ask, before_send)

    async def exchange_access_token(
        self,
        spec: ProviderSpec,
        endpoints: Endpoints,
        client: OAuthClient,
        rule: RefreshSpec,
        *,
        token: Secret,
        params: Params | None = None,
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Exchange an access token that is good for its successor. No RFC: Meta's services do it."""
        dialect = access_token_exchange_format(spec, client, rule, token, params or {})
        url = endpoints.token_endpoint
        if rule.url is not None:
            url = fill_template(rule.url, checked_params(spec, params or {}), spec)

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            auth = self._request_auth(spec, client, dialect)
            return authlib.fetch_token(url, grant_type=rule.grant_type, auth=auth)

        return await self._send(spec, client, ask, before_send)

    async def send_prepared(
        self,
        spec: ProviderSpec,
        client: OAuthClient,
        request: PreparedRequest,
        *,
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Ask for tokens on the strength of what we hold ourselves (RFC 6749 section 4.4, RFC 7523)."""
        url = require_complete(spec, request.url)

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            auth = self._request_auth(spec, client, request.dialect)
            return authlib.fetch_token(url, grant_type=request.grant_type, auth=auth)

        return await self._send(spec, client, ask, before_send)

    async def revoke(
        self,
        spec: ProviderSpec,
        endpoints: Endpoints,
        client: OAuthClient,
        *,
        token: Secret,
        hint: str | None = None,
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Tell the provider to end a grant (RFC 7009 section 2.1, or the definition's own way).

        `hint` is `refresh_token` or `access_token`; `spec.revocation.token` says which of the
        two ends the grant.
        """
        url = _require_endpoint(spec, endpoints.revocation_endpoint, "revocation_endpoint")
        url = require_complete(spec, fill_url_encoded(url, client_id=client.client_id, token=token.reveal()))
        dialect = revocation_format(spec, client, token)

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            return authlib.revoke_token(
                url,
                token=token.reveal(),
                token_type_hint=hint,
                auth=self._request_auth(spec, client, dialect),
            )

        return await self._send(spec, client, ask, before_send)

    async def introspect(
        self,
        spec: ProviderSpec,
        endpoints: Endpoints,
        client: OAuthClient,
        *,
        token: Secret,
        hint: str | None = None,
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Ask whether a token is active (RFC 7662 section 2.1)."""
        url = require_complete(
            spec, _require_endpoint(spec, endpoints.introspection_endpoint, "introspection_endpoint")
        )
        dialect = RequestFormat(auth=client.auth)

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            return authlib.introspect_token(
                url,
                token=token.reveal(),
                token_type_hint=hint,
                auth=self._request_auth(spec, client, dialect),
            )

        return await self._send(spec, client, ask, before_send)

    def _request_auth(
        self, spec: ProviderSpec, client: OAuthClient, dialect: RequestFormat
    ) -> ProviderRequestAuth:
        return ProviderRequestAuth(spec, client, dialect, self._nonces)

    async def send_signed(
        self,
        spec: ProviderSpec,
        client: OAuthClient,
        request: SignedRequest,
        *,
        before_send: BeforeSend | None = None,
    ) -> RawReply:
        """Send a request that is signed already (RFC 5849 sections 2.1 and 2.3)."""

        def ask(authlib: ProviderClient) -> Awaitable[Any]:
            return authlib.request(request.method, request.url, headers=request.headers, withhold_token=True)

        return await self._send(spec, client, ask, before_send)

    async def _send(
        self,
        spec: ProviderSpec,
        client: OAuthClient,
        ask: Callable[[ProviderClient], Awaitable[Any]],
        before_send: BeforeSend | None,
    ) -> RawReply:
        """Once; and once more for a server that did nothing but name the nonce it wants in a proof.

        That answer spends nothing (RFC 9449 section 8), so both are one use of a credential: only the
        second answer counts, and `before_send` is asked before its first byte as well.
        """
        reply = await self._send_once(spec, client, ask, before_send)
        if client.proof_key is not None and spec.dpop and requires_nonce(reply):
            reply = await self._send_once(spec, client, ask, before_send)
        return reply

    async def _send_once(
        self,
        spec: ProviderSpec,
        client: OAuthClient,
        ask: Callable[[ProviderClient], Awaitable[Any]],
        before_send: BeforeSend | None,
    ) -> RawReply:
        watch = SendObserver(_stop_on_failure(before_send))
        try:
            transport = self._egress.transport(watch, client.certificate_to_present())
        except Failure as failure:
            raise SendFailed(failure, sent=False) from None
        authlib = ProviderClient(client, transport)
        for name in spec.quirks:
            for hook in self._quirks[name].hooks:
                authlib.register_compliance_hook(hook, self._quirks[name].reshape)
        try:
            response = await ask(authlib)
        except ReplyReceived as answered:
            response = answered.response
        except _SendStopped as stopped:
            raise SendFailed(stopped.failure, sent=False) from stopped.__cause__
        except httpx2.InvalidURL:
            raise SendFailed(Failure(ErrorCode.EGRESS_REFUSED, "not a URL"), sent=False) from None
        except httpx2.TransportError as error:
            raise SendFailed(_unreachable_failure(spec, error), sent=watch.sent) from None
        except Failure as failure:
            raise SendFailed(failure, sent=watch.sent) from None
        finally:
            await transport.aclose()
        reply = RawReply(
            response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.content
        )
        if client.proof_key is not None:
            self._nonces.remember(str(response.request.url), client.proof_key, reply)
        return reply


class _SendStopped(Exception):
    """`before_send` said no."""

    def __init__(self, failure: Failure) -> None:
        super().__init__("stopped before sending")
        self.failure = failure


def _stop_on_failure(before_send: BeforeSend | None) -> BeforeSend | None:
    if before_send is None:
        return None

    def check() -> Callable[[], None] | None:
        try:
            return before_send()
        except Failure as failure:
            raise _SendStopped(failure) from failure
        except Exception as error:
            detail = "the request was stopped before a byte left"
            raise _SendStopped(Failure(ErrorCode.PROVIDER_UNREACHABLE, detail)) from error

    return check


def _unreachable_failure(spec: ProviderSpec, error: httpx2.TransportError) -> Failure:
    """Only the kind of trouble is told: an error's own text might quote a URL."""
    timed_out = isinstance(error, httpx2.TimeoutException)
    kind = "did not answer in time" if timed_out else f"could not be talked to ({type(error).__name__})"
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"{spec.name} {kind}", provider=spec.name)


def _require_endpoint(spec: ProviderSpec, url: str | None, name: str) -> str:
    if url is None:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{spec.name} has no {name}", provider=spec.name, field=name)
    return url


__all__ = ["RawReply", "SendFailed", "Sender"]
