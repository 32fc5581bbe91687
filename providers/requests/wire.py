"""The last step before the wire: authlib's standard request in a provider's dialect.

Client authentication, parameter names, body format and headers are put on here, in the one
place authlib offers for it: the request's auth.
"""

import base64
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote_plus, urlencode

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth.assertions import ASSERTION_TYPE, client_assertion, secret_assertion
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import ClientAuth
from providers.requests.client import OAuthClient
from providers.requests.dpop import NonceCache, dpop_proof

_STANDARD_HEADERS = {"Accept": "application/json", "User-Agent": "Evergrant"}
_BODY_HEADERS = ("content-type", "content-length")


@dataclass(frozen=True)
class RequestFormat:
    """How one request differs from RFC 6749. `extra` and `query` may hold `{client_id}`."""

    method: str = "POST"
    body_format: str = "form"
    auth: str = ClientAuth.BASIC.value
    renames: Mapping[str, str | None] = field(default_factory=dict)
    extra_params: Mapping[str, str] = field(
        default_factory=dict, repr=False
    )  # an assertion may be among them
    repeated_params: tuple[tuple[str, str], ...] = ()  # what may be there several times
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    bearer: str | None = field(default=None, repr=False)  # a token of the subject's as the credential
    omitted_params: tuple[str, ...] = ()
    requests_tokens: bool = False  # its answer may hold tokens: a proof goes along where they are bound


class ProviderRequestAuth(httpx2.Auth):
    """Turns the standard form request into the one this provider wants."""

    requires_request_body = True

    def __init__(
        self,
        spec: ProviderSpec,
        client: OAuthClient,
        dialect: RequestFormat,
        nonces: NonceCache | None = None,
    ) -> None:
        self._spec = spec
        self._client = client
        self._dialect = dialect
        self._nonces = nonces or NonceCache()

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        dialect = self._dialect
        fields = dict(parse_qsl(request.content.decode(), keep_blank_values=True))
        fields = {name: value for name, value in fields.items() if name not in dialect.omitted_params}
        fields |= dialect.extra_params
        headers = httpx2.Headers(
            [(k, v) for k, v in request.headers.multi_items() if k.lower() not in (*_BODY_HEADERS, "host")]
        )
        headers.update(_STANDARD_HEADERS)
        headers.update(dict(self._spec.required_headers))
        headers.update(dict(dialect.headers))
        if dialect.bearer is not None:
            headers["Authorization"] = f"Bearer {dialect.bearer}"
        self._authenticate_client(fields, headers)
        written = _build_request(request, dialect, _rename_params(fields, self._param_names()), headers)
        self._add_dpop_proof(written)
        yield written

    def _add_dpop_proof(self, request: httpx2.Request) -> None:
        """That we hold the key which the tokens are to be bound to (RFC 9449 section 5)."""
        key = self._client.proof_key
        if key is None or not self._spec.dpop or not self._dialect.requests_tokens:
            return
        url = str(request.url)
        nonce = self._nonces.get(url, key)
        request.headers["DPoP"] = dpop_proof(key, request.method, url, self._client.now(), nonce=nonce)

    def _param_names(self) -> dict[str, str | None]:
        named: dict[str, str | None] = {
            "client_id": self._spec.client_id_param,
            "client_secret": self._spec.client_secret_param,
        }
        return named | dict(self._dialect.renames)

    def _authenticate_client(self, fields: dict[str, str], headers: httpx2.Headers) -> None:
        """Say who we are (RFC 6749 section 2.3.1)."""
        match self._dialect.auth:
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
            case "header" | "bearer" | "none at all":
                pass  # the dialect's own header says it, or the token that is sent
            case other:
                detail = f"client authentication {other[:40]!r} is not carried out"
                raise Failure(
                    ErrorCode.INVALID_REQUEST, detail, field="client_auth", provider=self._spec.name
                )

    def _secret(self) -> str:
        if self._client.client_secret is None:
            detail = f"the integration has no client secret, and {self._spec.name} wants one"
            raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=self._spec.name)
        return self._client.client_secret.reveal()

    def _assertion(self, method: str) -> str:
        """Made anew for each request: its id works once (RFC 7523 section 3)."""
        client = self._client
        if method == ClientAuth.SECRET_JWT.value:
            return secret_assertion(client.client_id, client.audience, Secret(self._secret()), client.now())
        if client.key is None:
            detail = f"the integration has no key, and {self._spec.name} wants one"
            raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=self._spec.name)
        return client_assertion(client.client_id, client.audience, client.key, client.now())

    def _basic(self) -> str:
        encode = quote_plus if self._spec.basic_auth_encoding == "form" else str
        client_id, secret = encode(self._client.client_id), encode(self._secret())
        pair = f"{client_id}:{secret}"
        if self._spec.basic_auth_template is not None:
            pair = self._spec.basic_auth_template.replace("{client_id}", client_id)
            pair = pair.replace("{client_secret}", secret)
        return base64.b64encode(pair.encode()).decode("ascii")


def _rename_params(fields: Mapping[str, str], renames: Mapping[str, str | None]) -> dict[str, str]:
    named = {renames.get(name, name): value for name, value in fields.items()}
    return {name: value for name, value in named.items() if name is not None}


def _build_request(
    request: httpx2.Request, dialect: RequestFormat, fields: dict[str, str], headers: httpx2.Headers
) -> httpx2.Request:
    """The request with its fields where this provider reads them."""
    query: dict[str, str | list[str]] = dict(dialect.query)
    content = b""
    if dialect.method == "GET" or dialect.body_format == "query":
        query |= fields | _grouped(dialect.repeated_params)
    elif dialect.body_format == "json":
        headers["Content-Type"] = "application/json"
        content = json.dumps(fields | _grouped(dialect.repeated_params)).encode()
    elif dialect.body_format == "form":
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urlencode([*fields.items(), *dialect.repeated_params]).encode()
    url = request.url.copy_merge_params(query) if query else request.url
    rewritten = httpx2.Request(dialect.method, url, headers=headers, content=content or None)
    rewritten.extensions = request.extensions
    return rewritten


def _grouped(repeated: tuple[tuple[str, str], ...]) -> dict[str, str | list[str]]:
    """One value as it is, several as a list."""
    found: dict[str, list[str]] = {}
    for name, value in repeated:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
