"""A provider as a client of it sees it, and the fields and format of each request there. Pure.

`sender.write_request` adds the client authentication, and writes form or JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey, ProofKey
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth, Pkce
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
REFRESH_TOKEN = "refresh_token"  # the grant type, RFC 6749 section 6


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
class ProviderRequest:
    """A request to one endpoint of a provider, and how it differs from RFC 6749 there. It may hold secrets.

    `fields` have the standard's names, which `renames` replaces by the provider's; None leaves a field out.
    `auth` is a `ClientAuth`, "header" or "bearer" (a header of the request authenticates), or NO_AUTH.
    `requests_tokens`: the reply may hold tokens, so a DPoP proof is added where needed.
    """

    url: str
    fields: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    repeated_fields: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    method: str = "POST"
    body_format: str = "form"
    auth: str = ClientAuth.BASIC.value
    renames: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    query: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    bearer: str | None = field(default=None, repr=False)  # a token that authenticates the request
    requests_tokens: bool = False

    def with_resources(self, resources: Sequence[str]) -> "ProviderRequest":
        """The request with resource parameters (RFC 8707 section 2.2)."""
        added = tuple(("resource", uri) for uri in resources)
        return replace(self, repeated_fields=(*self.repeated_fields, *added)) if added else self


def token_request(provider: ProviderAccess, grant_type: str, fields: Params) -> ProviderRequest:
    """A token request. Raises Failure INVALID_REQUEST for a missing template parameter."""
    spec = provider.spec
    return ProviderRequest(
        provider.endpoints.token_endpoint,
        {"grant_type": grant_type, **fields},
        method=spec.token_request_method,
        body_format=spec.token_request_format.value,
        auth=provider.client.auth,
        renames=spec.token_request_param_names,
        query=provider.filled(spec.token_query_params),
        headers=spec.token_request_headers,
        requests_tokens=True,
    )


def code_exchange_request(
    provider: ProviderAccess,
    *,
    code: Secret,
    verifier: Secret,
    redirect_uri: str,
    resources: Sequence[str] = (),
) -> ProviderRequest:
    """Exchange an authorization code for tokens (RFC 6749 section 4.1.3, RFC 7636 section 4.5).

    Raises as `token_request`, also for a definition without this flow.
    """
    spec = provider.spec
    spec.require_usable()
    sent_uri = redirect_uri_to_send(spec, provider.params, redirect_uri)
    standard = {"redirect_uri": sent_uri, "code": code.reveal()}
    if spec.pkce is not Pkce.OFF:
        standard["code_verifier"] = verifier.reveal()
    fields = {name: value for name, value in standard.items() if value}
    request = token_request(provider, "authorization_code", fields | provider.filled(spec.token_params))
    return request.with_resources(resources)


def refresh_request(
    provider: ProviderAccess,
    token: Secret,
    *,
    redirect_uri: str | None = None,
    flow: Flow = Flow.AUTHORIZATION_CODE,
    resources: Sequence[str] = (),
    scopes: Sequence[str] = (),
) -> ProviderRequest:
    """Use a refresh token (RFC 6749 section 6). Without `scopes` the new token has those granted.

    Raises as `token_request`, also for a definition without refresh.
    """
    spec = provider.spec
    spec.require_usable(flow)
    if not spec.refresh_supported:
        detail = f"provider {spec.name} has no refresh"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="refresh_supported")
    in_header = spec.refresh_token_in == "header"
    fields = {} if in_header else {"refresh_token": token.reveal()}
    fields |= provider.filled(spec.refresh_params)
    if scopes:
        fields["scope"] = spec.scope_separator.join(scopes)
    if "redirect_uri" in spec.refresh_params_include:
        if redirect_uri is None:
            detail, included = f"{spec.name} requires the redirect URI in a refresh", "refresh_params_include"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field=included)
        fields["redirect_uri"] = redirect_uri_to_send(spec, provider.params, redirect_uri)
    request = token_request(provider, REFRESH_TOKEN, fields)
    return replace(
        request,
        url=provider.endpoints.refresh_endpoint or request.url,
        auth=spec.refresh_client_auth.value if spec.refresh_client_auth else request.auth,
        renames=spec.token_request_param_names | spec.refresh_param_names,
        bearer=token.reveal() if in_header else None,
    ).with_resources(resources)


def access_token_exchange_request(
    provider: ProviderAccess, rule: RefreshSpec, token: Secret
) -> ProviderRequest:
    """Exchange a valid access token for the next one. No RFC describes it; Meta's services do it.

    Raises as `token_request`.
    """
    spec = provider.spec
    renames = dict(spec.token_request_param_names)
    if rule.client == "secret":
        renames["client_id"] = None
    url = rule.url and fill_template(rule.url, checked_params(spec, provider.params), spec)
    return ProviderRequest(
        url or provider.endpoints.token_endpoint,
        {
            "grant_type": str(rule.grant_type),
            rule.token_param: token.reveal(),
            **provider.filled(rule.params),
        },
        method=rule.method,
        auth=NO_AUTH if rule.client == "none" else provider.client.auth,
        renames=renames,
        headers=spec.token_request_headers,
    )


def revocation_request(provider: ProviderAccess, token: Secret, hint: str) -> ProviderRequest:
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
    return ProviderRequest(
        url,
        {"token": token.reveal(), "token_type_hint": hint, **params},
        method=rule.method,
        body_format=rule.format,
        auth=client.auth if rule.auth == "client" else rule.auth,
        renames={"token": rule.token_param, "token_type_hint": rule.hint_param} | rule.param_names,
        headers=headers,
        bearer=token.reveal() if rule.auth == "bearer" else None,
    )


def introspection_request(provider: ProviderAccess, token: Secret, hint: str) -> ProviderRequest:
    """Ask whether a token is active (RFC 7662 section 2.1). Raises Failure INVALID_REQUEST."""
    url = provider.endpoints.introspection_endpoint
    url = require_endpoint(provider.spec, url, "introspection_endpoint")
    fields = {"token": token.reveal(), "token_type_hint": hint}
    return ProviderRequest(url, fields, auth=provider.client.auth)


def userinfo_request(url: str, token: Secret) -> ProviderRequest:
    """Ask for the claims of the token's account (OpenID Connect Core 1.0 section 5.3.1)."""
    return ProviderRequest(url, method="GET", body_format="none", auth="bearer", bearer=token.reveal())


def filled_params(spec: ProviderSpec, templates: Params, params: Params) -> dict[str, str]:
    """Parameter templates, filled in. Raises Failure INVALID_REQUEST for a missing template parameter."""
    if not templates:
        return {}
    return fill_params(spec, templates, checked_params(spec, params))
