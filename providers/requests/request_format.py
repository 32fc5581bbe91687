"""From a definition to the dialect of one request: exchange, refresh, revocation. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_lifecycle import RefreshSpec, RevocationSpec
from providers.definition.templates import checked_params, fill_template
from providers.requests.authorization_url import redirect_uri_to_send
from providers.requests.client import OAuthClient
from providers.requests.wire import RequestFormat

Params = Mapping[str, str]


def code_exchange_format(spec: ProviderSpec, client: OAuthClient, params: Params) -> RequestFormat:
    """How a code exchange is written. Raises Failure INVALID_REQUEST for a missing parameter."""
    return RequestFormat(
        method=spec.token_request_method,
        body_format=spec.token_request_format.value,
        auth=client.auth,
        renames=spec.token_request_param_names,
        extra_params=filled_params(spec, spec.token_params, params),
        query=filled_params(spec, spec.token_query_params, params),
        headers=spec.token_request_headers,
        requests_tokens=True,
    )


def refresh_format(
    spec: ProviderSpec, client: OAuthClient, token: Secret, redirect_uri: str | None, params: Params
) -> RequestFormat:
    """How a refresh is written. Raises Failure INVALID_REQUEST for a missing parameter."""
    in_header = spec.refresh_token_in == "header"
    return RequestFormat(
        method=spec.token_request_method,
        body_format=spec.token_request_format.value,
        auth=spec.refresh_client_auth.value if spec.refresh_client_auth else client.auth,
        renames=spec.token_request_param_names | spec.refresh_param_names,
        extra_params=filled_params(spec, spec.refresh_params, params)
        | _redirect_uri_param(spec, redirect_uri, params),
        query=filled_params(spec, spec.token_query_params, params),
        headers=spec.token_request_headers,
        bearer=token.reveal() if in_header else None,
        omitted_params=("refresh_token",) if in_header else (),
        requests_tokens=True,
    )


def access_token_exchange_format(
    spec: ProviderSpec, client: OAuthClient, rule: RefreshSpec, token: Secret, params: Params
) -> RequestFormat:
    """How an access token is exchanged for its successor. Raises as `refresh_dialect`."""
    renames = dict(spec.token_request_param_names)
    if rule.client == "secret":
        renames["client_id"] = None
    return RequestFormat(
        method=rule.method,
        auth="none at all" if rule.client == "none" else client.auth,
        renames=renames,
        extra_params={rule.token_param: token.reveal()} | filled_params(spec, rule.params, params),
        headers=spec.token_request_headers,
    )


def with_resources(dialect: RequestFormat, resources: Sequence[str]) -> RequestFormat:
    """The same for tokens of these resources (RFC 8707 section 2.2)."""
    return replace(
        dialect, repeated_params=(*dialect.repeated_params, *(("resource", uri) for uri in resources))
    )


def revocation_format(spec: ProviderSpec, client: OAuthClient, token: Secret) -> RequestFormat:
    """How a revocation is written: RFC 7009, or the definition's template."""
    rule = spec.revocation or RevocationSpec()
    headers = dict(rule.headers)
    if rule.auth == "header" and rule.auth_template is not None:
        secret = client.client_secret.reveal() if client.client_secret else ""
        text = rule.auth_template.replace("{client_secret}", secret)
        headers[rule.auth_header] = text.replace("{client_id}", client.client_id)
    return RequestFormat(
        method=rule.method,
        body_format=rule.format,
        auth=client.auth if rule.auth == "client" else rule.auth,
        renames={"token": rule.token_param, "token_type_hint": rule.hint_param} | rule.param_names,
        extra_params={
            name: text.replace("{client_id}", client.client_id) for name, text in rule.params.items()
        },
        headers=headers,
        bearer=token.reveal() if rule.auth == "bearer" else None,
    )


def filled_params(spec: ProviderSpec, templates: Params, params: Params) -> dict[str, str]:
    """Parameters with the integration's own in place. Raises Failure INVALID_REQUEST for a missing one."""
    if not templates:
        return {}
    values = checked_params(spec, params)
    return {name: fill_template(text, values, spec) for name, text in templates.items()}


def _redirect_uri_param(spec: ProviderSpec, redirect_uri: str | None, params: Params) -> dict[str, str]:
    if "redirect_uri" not in spec.refresh_params_include:
        return {}
    if redirect_uri is None:
        detail = f"{spec.name} wants the redirect URI in a refresh"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="refresh_params_include")
    return {"redirect_uri": redirect_uri_to_send(spec, params, redirect_uri)}
