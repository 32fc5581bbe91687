"""A provider as a client of it sees it, and the format of each request there. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey, ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth
from providers.definition.schema_response import RefreshSpec, RevocationSpec
from providers.definition.templates import (
    checked_params,
    fill_params,
    fill_template,
    fill_url_encoded,
    redirect_uri_to_send,
    require_endpoint,
)

Params = Mapping[str, str]
STANDARD_HEADERS = {"Accept": "application/json", "User-Agent": "Evergrant"}
NO_AUTH = "no authentication"  # as `auth`: not even the client id is sent


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


@dataclass(frozen=True)
class ProviderAccess:
    """A provider and our client there: all that its requests have in common."""

    spec: ProviderSpec
    endpoints: Endpoints
    client: OAuthClient
    params: Params = field(default_factory=dict[str, str])  # template parameters

    def require_host(self, url: str) -> None:
        """Raise Failure HOST_NOT_ACCEPTED unless its secrets may be sent there. A trial pins nothing."""

    def filled(self, templates: Params) -> dict[str, str]:
        """As `filled_params`."""
        return filled_params(self.spec, templates, self.params)


@dataclass(frozen=True)
class RequestFormat:
    """How a request differs from RFC 6749. `extra_params` may hold secrets.

    `auth` is a `ClientAuth`, "header" or "bearer" (the format's own header authenticates), or NO_AUTH.
    """

    method: str = "POST"
    body_format: str = "form"
    auth: str = ClientAuth.BASIC.value
    renames: Mapping[str, str | None] = field(default_factory=dict)
    extra_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    repeated_params: tuple[tuple[str, str], ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    bearer: str | None = field(default=None, repr=False)  # a token that authenticates the request
    omitted_params: tuple[str, ...] = ()
    requests_tokens: bool = False  # the reply may hold tokens, so a DPoP proof is added where needed


@dataclass(frozen=True)
class PreparedRequest:
    """A request to a token, device authorization or PAR endpoint, ready to send."""

    url: str
    grant_type: str
    format: RequestFormat


@dataclass(frozen=True)
class SignedRequest:
    """A request without a body whose headers are complete. They hold a signature, so no repr shows them."""

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)


def token_request_format(provider: ProviderAccess, extra_params: Params) -> RequestFormat:
    """The format of a token request. Raises Failure INVALID_REQUEST for a missing template parameter."""
    spec = provider.spec
    return RequestFormat(
        method=spec.token_request_method,
        body_format=spec.token_request_format.value,
        auth=provider.client.auth,
        renames=spec.token_request_param_names,
        extra_params=extra_params,
        query=provider.filled(spec.token_query_params),
        headers=spec.token_request_headers,
        requests_tokens=True,
    )


def code_exchange_format(provider: ProviderAccess) -> RequestFormat:
    """The format of a code exchange. Raises as `token_request_format`."""
    return token_request_format(provider, provider.filled(provider.spec.token_params))


def refresh_format(
    provider: ProviderAccess, token: Secret, redirect_uri: str | None, scopes: Sequence[str] = ()
) -> RequestFormat:
    """The format of a refresh. Raises as `token_request_format`."""
    spec = provider.spec
    extra = provider.filled(spec.refresh_params)
    if scopes:
        extra["scope"] = spec.scope_separator.join(scopes)
    if "redirect_uri" in spec.refresh_params_include:
        if redirect_uri is None:
            detail, field = f"{spec.name} requires the redirect URI in a refresh", "refresh_params_include"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field=field)
        extra["redirect_uri"] = redirect_uri_to_send(spec, provider.params, redirect_uri)
    format = token_request_format(provider, extra)
    in_header = spec.refresh_token_in == "header"
    return replace(
        format,
        auth=spec.refresh_client_auth.value if spec.refresh_client_auth else format.auth,
        renames=spec.token_request_param_names | spec.refresh_param_names,
        bearer=token.reveal() if in_header else None,
        omitted_params=("refresh_token",) if in_header else (),
    )


def access_token_exchange_request(
    provider: ProviderAccess, rule: RefreshSpec, token: Secret
) -> PreparedRequest:
    """Exchange a valid access token for the next one. No RFC describes it; Meta's services do it.

    Raises as `token_request_format`.
    """
    spec = provider.spec
    renames = dict(spec.token_request_param_names)
    if rule.client == "secret":
        renames["client_id"] = None
    format = RequestFormat(
        method=rule.method,
        auth=NO_AUTH if rule.client == "none" else provider.client.auth,
        renames=renames,
        extra_params={rule.token_param: token.reveal()} | provider.filled(rule.params),
        headers=spec.token_request_headers,
    )
    own_url = rule.url and fill_template(rule.url, checked_params(spec, provider.params), spec)
    return PreparedRequest(own_url or provider.endpoints.token_endpoint, str(rule.grant_type), format)


def with_resources(format: RequestFormat, resources: Sequence[str]) -> RequestFormat:
    """The format with resource parameters (RFC 8707 section 2.2)."""
    return replace(
        format, repeated_params=(*format.repeated_params, *(("resource", uri) for uri in resources))
    )


def revocation_request(provider: ProviderAccess, token: Secret, hint: str) -> PreparedRequest:
    """Revoke a token (RFC 7009 section 2.1), or the definition's own request.

    `hint` is `refresh_token` or `access_token`; `spec.revocation.token` names the one that ends the
    grant. Raises Failure INVALID_REQUEST for a provider without revocation.
    """
    spec, client, url = provider.spec, provider.client, provider.endpoints.revocation_endpoint
    if url is not None:
        url = fill_url_encoded(url, client_id=client.client_id, token=token.reveal())
    url = require_endpoint(spec, url, "revocation_endpoint")
    rule = spec.revocation or RevocationSpec()
    headers = dict(rule.headers)
    if rule.auth == "header" and rule.auth_template is not None:
        secret = client.client_secret.reveal() if client.client_secret else ""
        text = rule.auth_template.replace("{client_secret}", secret)
        headers[rule.auth_header] = text.replace("{client_id}", client.client_id)
    params = {name: text.replace("{client_id}", client.client_id) for name, text in rule.params.items()}
    format = RequestFormat(
        method=rule.method,
        body_format=rule.format,
        auth=client.auth if rule.auth == "client" else rule.auth,
        renames={"token": rule.token_param, "token_type_hint": rule.hint_param} | rule.param_names,
        extra_params={"token": token.reveal(), "token_type_hint": hint, **params},
        headers=headers,
        bearer=token.reveal() if rule.auth == "bearer" else None,
        omitted_params=("grant_type",),
    )
    return PreparedRequest(url, "revocation", format)


def introspection_request(provider: ProviderAccess, token: Secret, hint: str) -> PreparedRequest:
    """Ask whether a token is active (RFC 7662 section 2.1). Raises Failure INVALID_REQUEST."""
    url = provider.endpoints.introspection_endpoint
    url = require_endpoint(provider.spec, url, "introspection_endpoint")
    fields = {"token": token.reveal(), "token_type_hint": hint}
    format = RequestFormat(auth=provider.client.auth, extra_params=fields, omitted_params=("grant_type",))
    return PreparedRequest(url, "introspection", format)


def filled_params(spec: ProviderSpec, templates: Params, params: Params) -> dict[str, str]:
    """Parameter templates, filled in. Raises Failure INVALID_REQUEST for a missing template parameter."""
    if not templates:
        return {}
    return fill_params(spec, templates, checked_params(spec, params))
