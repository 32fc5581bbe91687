"""Writes the requests to a provider in its format, client authentication included, and sends them.

A request is written when it is sent: a client assertion and a DPoP proof are good for one use, and soon over.
"""

import base64
import json
from collections.abc import Sequence
from urllib.parse import quote_plus, urlencode

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend, Egress, SendObserver, why_unreachable
from providers.client_auth import ASSERTION_TYPE, client_assertion, secret_assertion
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import ClientAuth
from providers.definition.templates import require_complete
from providers.requests.dpop import NonceCache, dpop_proof, requires_nonce
from providers.requests.request_format import (
    NO_AUTH,
    STANDARD_HEADERS,
    OAuthClient,
    ProviderAccess,
    ProviderRequest,
)
from providers.responses.raw_reply import RawReply


class SendFailed(Failure):
    """No reply was received. `sent` is False only when certainly no byte of the request was sent."""

    def __init__(self, failure: Failure, *, sent: bool) -> None:
        super().__init__(failure.code, failure.detail, retry_after=failure.retry_after, **failure.context)
        self.failure = failure
        self.sent = sent


class Sender:
    """Sends OAuth requests to any provider, each over its own TCP connection. It holds no token."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._nonces = NonceCache()

    async def send(
        self, access: ProviderAccess, request: ProviderRequest, *, before_send: BeforeSend | None = None
    ) -> RawReply:
        """Send once, and again when the server only asks for a DPoP nonce (RFC 9449 section 8).

        Such a reply spends no credential, so both requests are one use of it. `before_send` is called
        on the open TCP connection, before the first byte of each; its exception stops the request. Nothing
        is sent to a host that isn't pinned. Raises SendFailed when no reply is received, and Failure
        INVALID_REQUEST for a URL that lacks a parameter.
        """
        spec, client, url = access.spec, access.client, require_complete(access.spec, request.url)
        for _ in range(2):
            observer = SendObserver(before_send)
            try:
                access.require_host(url)
                written = write_request(access, request, self._nonces)
                async with self._egress.transport(observer, client.certificate_to_present()) as transport:
                    response = await transport.handle_async_request(written)
            except httpx2.InvalidURL:
                raise SendFailed(Failure(ErrorCode.EGRESS_REFUSED, "not a URL"), sent=False) from None
            except httpx2.TransportError as error:
                lost = Failure(ErrorCode.PROVIDER_UNREACHABLE, why_unreachable(error), provider=spec.name)
                raise SendFailed(lost, sent=observer.sent) from None
            except Failure as failure:
                raise SendFailed(failure, sent=observer.sent) from failure
            response.request = written
            reply = RawReply.of(response)
            if client.proof_key is None:
                break
            self._nonces.remember(str(written.url), client.proof_key, reply)
            if not spec.dpop or not requires_nonce(reply):
                break
        return reply


def write_request(access: ProviderAccess, request: ProviderRequest, nonces: NonceCache) -> httpx2.Request:
    """The HTTP request in the provider's names and format, with client authentication, and with a proof of
    the key to which the tokens will be bound (RFC 9449 section 5).

    Raises Failure CLIENT_REJECTED when the integration lacks a secret or a key.
    """
    spec, client, fields = access.spec, access.client, dict(request.fields)
    headers = httpx2.Headers(STANDARD_HEADERS)
    headers.update(dict(spec.required_headers))
    headers.update(dict(request.headers))
    if request.bearer is not None:
        headers["Authorization"] = f"Bearer {request.bearer}"
    _authenticate_client(access, request.auth, fields, headers)
    names = {"client_id": spec.client_id_param, "client_secret": spec.client_secret_param, **request.renames}
    renamed = {names.get(name, name): value for name, value in fields.items()}
    fields = {name: value for name, value in renamed.items() if name is not None}
    written = _build(request, fields, headers)
    if client.proof_key is not None and spec.dpop and request.requests_tokens:
        url = str(written.url)
        nonce = nonces.get(url, client.proof_key)
        written.headers["DPoP"] = dpop_proof(client.proof_key, written.method, url, client.now(), nonce=nonce)
    return written


def _build(request: ProviderRequest, fields: dict[str, str], headers: httpx2.Headers) -> httpx2.Request:
    """The request with its fields in the query, in JSON or in a form."""
    query: dict[str, str | list[str]] = dict(request.query)
    content = b""
    if request.method == "GET" or request.body_format == "query":
        query |= fields | _grouped(request.repeated_fields)
    elif request.body_format == "json":
        headers["Content-Type"] = "application/json"
        content = json.dumps(fields | _grouped(request.repeated_fields)).encode()
    elif request.body_format == "form":
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urlencode([*fields.items(), *request.repeated_fields]).encode()
    url = httpx2.URL(request.url)
    url = url.copy_merge_params(query) if query else url
    return httpx2.Request(request.method, url, headers=headers, content=content or None)


def _authenticate_client(
    access: ProviderAccess, method: str, fields: dict[str, str], headers: httpx2.Headers
) -> None:
    """Add the client's credentials (RFC 6749 section 2.3.1)."""
    spec, client = access.spec, access.client
    if method in (NO_AUTH, "header", "bearer"):
        return
    match method:
        case ClientAuth.BASIC.value:
            headers["Authorization"] = f"Basic {_basic(spec, client)}"
        case ClientAuth.POST.value:
            fields["client_id"] = client.client_id
            if spec.client_secret_header:
                headers[spec.client_secret_header] = _secret(spec, client)
            else:
                fields["client_secret"] = _secret(spec, client)
        case ClientAuth.NONE.value | ClientAuth.TLS.value | ClientAuth.SELF_SIGNED_TLS.value:
            fields["client_id"] = client.client_id
        case ClientAuth.PRIVATE_KEY_JWT.value | ClientAuth.SECRET_JWT.value:
            fields["client_id"] = client.client_id
            fields["client_assertion_type"] = ASSERTION_TYPE
            fields["client_assertion"] = _assertion(spec, client, method)
        case _:
            detail = f"client authentication {method[:40]!r} is not supported"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="client_auth", provider=spec.name)


def _secret(spec: ProviderSpec, client: OAuthClient) -> str:
    if client.client_secret is None:
        detail = f"the integration has no client secret, which {spec.name} requires"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name)
    return client.client_secret.reveal()


def _assertion(spec: ProviderSpec, client: OAuthClient, method: str) -> str:
    """A new assertion for each request, since its id works once (RFC 7523 section 3)."""
    if method == ClientAuth.SECRET_JWT.value:
        secret = Secret(_secret(spec, client))
        return secret_assertion(client.client_id, client.audience, secret, client.now())
    if client.key is None:
        detail = f"the integration has no key, which {spec.name} requires"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name)
    return client_assertion(client.client_id, client.audience, client.key, client.now())


def _basic(spec: ProviderSpec, client: OAuthClient) -> str:
    """The value of HTTP Basic: id and secret are form-encoded first (RFC 6749 section 2.3.1)."""
    client_id, secret = quote_plus(client.client_id), quote_plus(_secret(spec, client))
    pair = f"{client_id}:{secret}"
    if spec.basic_auth_template is not None:
        pair = spec.basic_auth_template.replace("{client_id}", client_id)
        pair = pair.replace("{client_secret}", secret)
    return base64.b64encode(pair.encode()).decode("ascii")


def _grouped(repeated: Sequence[tuple[str, str]]) -> dict[str, str | list[str]]:
    """By name: the value, or the list of several values."""
    grouped: dict[str, list[str]] = {}
    for name, value in repeated:
        grouped.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in grouped.items()}
