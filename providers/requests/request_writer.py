"""Rewrites authlib's standard request in the provider's format: authentication, names, body, headers."""

import base64
import json
from collections.abc import Generator
from urllib.parse import parse_qsl, quote_plus, urlencode

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth import ASSERTION_TYPE, client_assertion, secret_assertion
from providers.definition.schema_request import ClientAuth
from providers.requests.dpop import NonceCache, dpop_proof
from providers.requests.request_format import NO_AUTH, STANDARD_HEADERS, ProviderAccess, RequestFormat

_BODY_HEADERS = ("content-type", "content-length")


class ProviderRequestAuth(httpx2.Auth):
    """An authlib request's auth, which is where authlib lets the request be rewritten."""

    requires_request_body = True

    def __init__(self, provider: ProviderAccess, format: RequestFormat, nonces: NonceCache) -> None:
        self._spec = provider.spec
        self._client = provider.client
        self._format = format
        self._nonces = nonces

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        format = self._format
        fields = dict(parse_qsl(request.content.decode(), keep_blank_values=True))
        fields = {name: value for name, value in fields.items() if name not in format.omitted_params}
        fields |= format.extra_params
        headers = httpx2.Headers(
            [(k, v) for k, v in request.headers.multi_items() if k.lower() not in (*_BODY_HEADERS, "host")]
        )
        headers.update(STANDARD_HEADERS)
        headers.update(dict(self._spec.required_headers))
        headers.update(dict(format.headers))
        if format.bearer is not None:
            headers["Authorization"] = f"Bearer {format.bearer}"
        self._authenticate_client(fields, headers)
        names = {"client_id": self._spec.client_id_param, "client_secret": self._spec.client_secret_param}
        renames = {**names, **format.renames}
        renamed = {renames.get(name, name): value for name, value in fields.items()}
        fields = {name: value for name, value in renamed.items() if name is not None}
        written = _build_request(request, format, fields, headers)
        self._add_dpop_proof(written)
        yield written

    def _add_dpop_proof(self, request: httpx2.Request) -> None:
        """Prove possession of the key to which the tokens will be bound (RFC 9449 section 5)."""
        key = self._client.proof_key
        if key is None or not self._spec.dpop or not self._format.requests_tokens:
            return
        url = str(request.url)
        nonce = self._nonces.get(url, key)
        request.headers["DPoP"] = dpop_proof(key, request.method, url, self._client.now(), nonce=nonce)

    def _authenticate_client(self, fields: dict[str, str], headers: httpx2.Headers) -> None:
        """Add the client's credentials (RFC 6749 section 2.3.1)."""
        if self._format.auth in (NO_AUTH, "header", "bearer"):
            return
        match self._format.auth:
            case ClientAuth.BASIC.value:
                headers["Authorization"] = f"Basic {self._basic()}"
            case ClientAuth.POST.value:
                fields["client_id"] = self._client.client_id
                if self._spec.client_secret_header:
                    headers[self._spec.client_secret_header] = self._secret()
                else:
                    fields["client_secret"] = self._secret()
            case ClientAuth.NONE.value | ClientAuth.TLS.value | ClientAuth.SELF_SIGNED_TLS.value:
                fields["client_id"] = self._client.client_id
            case ClientAuth.PRIVATE_KEY_JWT.value | ClientAuth.SECRET_JWT.value as method:
                fields["client_id"] = self._client.client_id
                fields["client_assertion_type"] = ASSERTION_TYPE
                fields["client_assertion"] = self._assertion(method)
            case other:
                detail = f"client authentication {other[:40]!r} is not supported"
                raise Failure(
                    ErrorCode.INVALID_REQUEST, detail, field="client_auth", provider=self._spec.name
                )

    def _secret(self) -> str:
        if self._client.client_secret is None:
            detail = f"the integration has no client secret, which {self._spec.name} requires"
            raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=self._spec.name)
        return self._client.client_secret.reveal()

    def _assertion(self, method: str) -> str:
        """A new assertion for each request, since its id works once (RFC 7523 section 3)."""
        client = self._client
        if method == ClientAuth.SECRET_JWT.value:
            return secret_assertion(client.client_id, client.audience, Secret(self._secret()), client.now())
        if client.key is None:
            detail = f"the integration has no key, which {self._spec.name} requires"
            raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=self._spec.name)
        return client_assertion(client.client_id, client.audience, client.key, client.now())

    def _basic(self) -> str:
        client_id, secret = quote_plus(self._client.client_id), quote_plus(self._secret())
        pair = f"{client_id}:{secret}"
        if self._spec.basic_auth_template is not None:
            pair = self._spec.basic_auth_template.replace("{client_id}", client_id)
            pair = pair.replace("{client_secret}", secret)
        return base64.b64encode(pair.encode()).decode("ascii")


def _build_request(
    request: httpx2.Request, format: RequestFormat, fields: dict[str, str], headers: httpx2.Headers
) -> httpx2.Request:
    """The request with its fields in the query, in JSON or in a form."""
    query: dict[str, str | list[str]] = dict(format.query)
    content = b""
    if format.method == "GET" or format.body_format == "query":
        query |= fields | _grouped(format.repeated_params)
    elif format.body_format == "json":
        headers["Content-Type"] = "application/json"
        content = json.dumps(fields | _grouped(format.repeated_params)).encode()
    elif format.body_format == "form":
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urlencode([*fields.items(), *format.repeated_params]).encode()
    url = request.url.copy_merge_params(query) if query else request.url
    rewritten = httpx2.Request(format.method, url, headers=headers, content=content or None)
    rewritten.extensions = request.extensions
    return rewritten


def _grouped(repeated: tuple[tuple[str, str], ...]) -> dict[str, str | list[str]]:
    """By name: the value, or the list of several values."""
    found: dict[str, list[str]] = {}
    for name, value in repeated:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
