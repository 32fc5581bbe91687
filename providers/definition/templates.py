"""Fills in the template parameters of a definition, and selects the client authentication."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import PLACEHOLDER, placeholders
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth

_ENDPOINTS = (
    *("issuer", "authorization_endpoint", "token_endpoint", "refresh_endpoint", "revocation_endpoint"),
    *("introspection_endpoint", "device_authorization_endpoint", "registration_endpoint"),
    "pushed_authorization_request_endpoint",
)
_REVOCATION_PLACEHOLDERS = frozenset({"client_id", "token"})  # filled in when a revocation is sent


def definition_endpoints(spec: ProviderSpec, params: Mapping[str, str]) -> Endpoints:
    """The definition's endpoints with an integration's parameters filled in.

    A placeholder of a callback's parameter may stay; `require_complete` refuses such a URL. Raises
    Failure INVALID_REQUEST that names a missing, unknown or malformed parameter, and for a provider
    whose endpoints must be discovered.
    """
    if spec.token_endpoint is None:
        detail = f"provider {spec.name} has no endpoints of its own; give an issuer"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="issuer", provider=spec.name)
    values = checked_params(spec, params)
    later = frozenset(name for name, rule in spec.template_params.items() if rule.source == "callback")

    urls = {name: getattr(spec, name) for name in _ENDPOINTS}
    if spec.revocation is not None and spec.revocation.url is not None:
        urls["revocation_endpoint"] = spec.revocation.url
    leave = _REVOCATION_PLACEHOLDERS | later
    filled: dict[str, Any] = {
        name: fill_template(url, values, spec, leave=leave) for name, url in urls.items() if url is not None
    }
    return Endpoints(
        **filled,
        iss_in_callback=spec.iss_in_callback,
        pushed_requests_required=spec.require_pushed_authorization_requests,
    )


def integration_endpoints(
    spec: ProviderSpec, integration: Integration, metadata: Mapping[str, Any] | None = None
) -> Endpoints:
    """An integration's endpoints: those discovered and pinned, else the definition's.

    `metadata` is the connection's, which may have a template parameter from a callback.
    """
    if integration.endpoints is not None:
        mutual = client_auth_of(spec, integration) in MUTUAL_TLS
        return integration.endpoints.for_mutual_tls() if mutual else integration.endpoints
    return definition_endpoints(spec, {**integration.params, **params_from_metadata(spec, metadata or {})})


def protected_resource_url(spec: ProviderSpec, params: Mapping[str, str]) -> str | None:
    """The URL of the protected resource that an integration is for; None where the issuer is known.

    Raises Failure INVALID_REQUEST (field `params.url`).
    """
    if spec.protected_resource is None:
        return None
    return fill_template(spec.protected_resource, checked_params(spec, params), spec)


def server_address(protected_resource: str) -> str:
    """Where a remote MCP server is called: the URL of the resource without a query, with a path."""
    url = urlsplit(protected_resource)
    return f"{url.scheme}://{url.netloc}{url.path or '/'}"


def redirect_uri_to_send(spec: ProviderSpec, params: Mapping[str, str], callback_url: str) -> str:
    """The redirect_uri of a request: the callback URL, or the name under which the provider knows it."""
    if spec.redirect_uri_override is None:
        return callback_url
    return fill_template(spec.redirect_uri_override, checked_params(spec, params), spec)


def require_complete(spec: ProviderSpec, url: str) -> str:
    """The URL, if it has no placeholder left. Raises Failure INVALID_REQUEST that names the parameter."""
    waiting = PLACEHOLDER.search(url)
    if waiting:
        raise _invalid_param(spec, waiting.group(1), "is not known yet, since it comes with the callback")
    return url


def require_endpoint(spec: ProviderSpec, url: str | None, name: str) -> str:
    """The endpoint `name`. Raises Failure INVALID_REQUEST when it is absent, or as `require_complete`."""
    if url is None:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{spec.name} has no {name}", provider=spec.name, field=name)
    return require_complete(spec, url)


def params_from_metadata(spec: ProviderSpec, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The template parameters among a connection's metadata, unchecked."""
    names = [name for name, rule in spec.template_params.items() if rule.source != "integration"]
    return {name: str(metadata[name]) for name in names if isinstance(metadata.get(name), str | int)}


def api_base_url_of(spec: ProviderSpec, params: Mapping[str, str], metadata: Mapping[str, Any]) -> str | None:
    """The base URL of the provider's API, or None while a parameter of it is missing or invalid."""
    if spec.api_from_reply is not None:
        return spec.api_from_reply.base_url(metadata.get(spec.api_from_reply.metadata))
    param = spec.api_base_url_param
    if spec.api_base_url is None and param is None:
        return None
    try:
        values = checked_params(spec, {**params, **params_from_metadata(spec, metadata)})
        return values.get(param) if param else fill_template(spec.api_base_url or "", values, spec)
    except Failure:
        return None


def checked_params(spec: ProviderSpec, params: Mapping[str, str]) -> dict[str, str]:
    """Normalised parameters with defaults. Raises Failure INVALID_REQUEST (field `params.<name>`)."""
    unknown = set(params) - set(spec.template_params)
    if unknown:
        name = min(unknown)[:64]
        has = ", ".join(param for param, rule in spec.template_params.items() if rule.source == "integration")
        raise _invalid_param(spec, name, f"is not a parameter of {spec.name}, which has {has or 'none'}")
    values: dict[str, str] = {}
    for name, rule in spec.template_params.items():
        raw = params.get(name, rule.default)
        if raw is None:
            continue  # an error only where a template needs it
        value = rule.normalised(raw)
        problem = rule.problem(value)
        if problem:
            raise _invalid_param(spec, name, problem)
        values[name] = value
    return values


def fill_template(
    template: str, values: Mapping[str, str], spec: ProviderSpec, *, leave: frozenset[str] = frozenset()
) -> str:
    """A template with its placeholders replaced. Raises Failure INVALID_REQUEST for a missing one."""
    out, at = [], 0
    for match in PLACEHOLDER.finditer(template):
        name = match.group(1)
        out.append(template[at : match.start()])
        if name in values:
            out.append(values[name])
        elif name in leave:
            out.append(match.group(0))
        else:
            raise _invalid_param(spec, name, "is missing")
        at = match.end()
    return "".join([*out, template[at:]])


def fill_params(
    spec: ProviderSpec, templates: Mapping[str, str], values: Mapping[str, str]
) -> dict[str, str]:
    """Parameters of a request, without those that hold an optional template parameter without a value.

    Raises as `fill_template`.
    """
    absent = {name for name, rule in spec.template_params.items() if rule.optional} - values.keys()
    present = {name: text for name, text in templates.items() if not absent & placeholders(text)}
    return {name: fill_template(text, values, spec) for name, text in present.items()}


def fill_url_encoded(template: str, **values: str) -> str:
    """A URL with percent-encoded values filled in."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", quote(value, safe=""))
    return template


def client_auth_of(spec: ProviderSpec, integration: Integration) -> str:
    """The integration's method of client authentication: its own choice, else the definition's.

    For a discovered server, the metadata decides between Basic and the request body. Basic is
    mandatory for servers (RFC 6749 section 2.3.1).
    """
    if integration.client_auth is not None:
        return integration.client_auth
    offered = integration.endpoints.token_auth_methods if integration.endpoints else ()
    if spec.discovery and offered and spec.client_auth.value not in offered:
        for method in (ClientAuth.BASIC, ClientAuth.POST):
            if method.value in offered:
                return method.value
    return spec.client_auth.value


def assertion_audience(spec: ProviderSpec, endpoints: Endpoints) -> str:
    """The audience of a client assertion (RFC 7523 section 3).

    The issuer, which a mix-up attack can't change; the token endpoint where the definition says so
    or there is no issuer.
    """
    if spec.client_assertion_audience == "issuer" and endpoints.issuer is not None:
        return endpoints.issuer
    return endpoints.token_endpoint


def _invalid_param(spec: ProviderSpec, name: str, problem: str) -> Failure:
    rule = spec.template_params.get(name)
    about = f": {rule.description}" if rule is not None and rule.description else ""
    repair = f"Give it in params, or as --param {name}=VALUE{about}" if rule else "Leave it out."
    field = f"params.{name}"
    return Failure(
        ErrorCode.INVALID_REQUEST, f"{name} {problem}", field=field, provider=spec.name, repair=repair
    )
