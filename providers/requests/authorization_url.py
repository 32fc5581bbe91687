"""Builds the URL that takes the subject's browser to the provider. Pure, but for the secrets.

RFC 6749 section 4.1.1, RFC 7636; authlib builds the standard request, the definition bends it.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from authlib.oauth2.client import OAuth2Client

from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, Pkce
from providers.definition.templates import (
    checked_params,
    client_auth_of,
    definition_endpoints,
    fill_template,
    params_from_metadata,
    require_complete,
)

_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")  # RFC 7636 section 4.1
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3


def new_verifier() -> Secret:
    """A PKCE verifier: 43 characters, 256 bits (RFC 7636 section 4.1)."""
    return Secret(secrets.token_urlsafe(32))


def new_state() -> Secret:
    """A state: 43 characters, 256 bits, independent of any verifier."""
    return Secret(secrets.token_urlsafe(32))


def new_nonce() -> Secret:
    """A nonce: 43 characters, 256 bits (OpenID Connect Core 1.0 section 15.5.2)."""
    return Secret(secrets.token_urlsafe(32))


def asks_for_id_token(spec: ProviderSpec, integration: Integration, scopes: Sequence[str]) -> bool:
    """Does an id token come of a request for these scopes, with the request's nonce in it?

    OpenID Connect Core 1.0 section 3.1.2.1. Raises as `scopes_to_request`.
    """
    types = spec.authorization_params.get("response_type", "").split()
    openid = "openid" in requested_scopes(spec, integration, scopes) or "id_token" in types
    return openid and spec.id_token_nonce


def requested_scopes(spec: ProviderSpec, integration: Integration, scopes: Sequence[str]) -> tuple[str, ...]:
    """The scopes a consent asks for: those given, else the defaults, with the offline scope.

    Raises Failure INVALID_REQUEST (field `scopes`) for a scope that can't be written.
    """
    if not spec.scopes_supported:
        return ()
    wanted = tuple(scopes) or integration.default_scopes or spec.default_scopes
    if spec.offline_scope:
        wanted = (*wanted, spec.offline_scope)
    return _checked_scopes(spec, wanted, "scopes")


def _checked_scopes(spec: ProviderSpec, scopes: Sequence[str], field: str) -> tuple[str, ...]:
    for scope in scopes:
        if not _SCOPE.fullmatch(scope) or spec.scope_separator in scope:
            raise Failure(ErrorCode.INVALID_REQUEST, f"{scope[:80]!r} is not a scope", field=field)
    return tuple(dict.fromkeys(scopes))


def token_slot_scope_params(
    spec: ProviderSpec, slot_scopes: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Scopes by the parameter they go into. Raises Failure INVALID_REQUEST (field `slot_scopes`)."""
    unknown = set(slot_scopes) - set(spec.scope_params)
    if unknown:
        detail = f"{spec.name} has no scopes of their own for {min(unknown)[:64]}"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="slot_scopes", provider=spec.name)
    return {
        spec.scope_params[chain]: _checked_scopes(spec, scopes, "slot_scopes")
        for chain, scopes in slot_scopes.items()
    }


def build_authorization_url(
    spec: ProviderSpec,
    integration: Integration,
    *,
    redirect_uri: str,
    state: Secret,
    verifier: Secret | None,
    scopes: Sequence[str],
    slot_scopes: Mapping[str, Sequence[str]] | None = None,
    params: Mapping[str, str] | None = None,
    target: TokenTarget | None = None,
    dpop_jkt: str | None = None,
    nonce: Secret | None = None,
) -> str:
    """The URL to send the browser to. It holds the state, and the verifier only as its S256 challenge.

    Without a verifier it asks for the token itself (RFC 6749 section 4.2.1): no code, nothing to bind.

    `slot_scopes` are those of further chains, where the definition has a parameter for them.
    `params` are the caller's own (a login hint, say); each must be on the definition's list.
    `target` says what the tokens are for (RFC 8707 section 2.1). `dpop_jkt` names the key that the
    code is to be bound to (RFC 9449 section 10). `nonce` is what the id token has to repeat.
    Raises Failure INVALID_REQUEST when the provider can't be used this way.
    """
    spec.require_usable(Flow.AUTHORIZATION_CODE if verifier is not None else Flow.IMPLICIT)
    if verifier is not None and (not _VERIFIER.fullmatch(verifier.reveal()) or verifier == state):
        raise Failure(ErrorCode.INTERNAL, "a PKCE verifier must be 43 to 128 characters and not the state")
    endpoints = integration_endpoints(spec, integration)
    if endpoints.authorization_endpoint is None:
        detail = f"{spec.name} has no page where somebody could consent"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="flow")
    values = checked_params(spec, integration.params)
    extra = {name: fill_template(text, values, spec) for name, text in spec.authorization_params.items()}
    extra |= _caller_params(spec, params or {})
    if verifier is None:
        extra = _implicit_params(extra)
        spec = spec.model_copy(update={"offline_scope": None})  # no refresh token comes (section 4.2.2)
    if target is not None and target.audience:
        extra["audience"] = target.audience
    if dpop_jkt is not None:
        extra["dpop_jkt"] = dpop_jkt
    if nonce is not None:
        extra["nonce"] = nonce.reveal()
    wanted = requested_scopes(spec, integration, scopes)
    further = token_slot_scope_params(spec, slot_scopes or {})
    extra |= {param: spec.scope_separator.join(its) for param, its in further.items()}
    authlib = OAuth2Client(None, client_id=integration.client_id, code_challenge_method="S256")
    url, _ = authlib.create_authorization_url(
        require_complete(spec, endpoints.authorization_endpoint),
        state=state.reveal(),
        code_verifier=verifier.reveal() if verifier is not None and spec.pkce is not Pkce.OFF else None,
        redirect_uri=redirect_uri_to_send(spec, integration.params, redirect_uri),
        scope=None,  # ours: separator and name differ
        **extra,
    )
    return _in_provider_format(spec, url, wanted, verifier, target.resources if target else ())


def integration_endpoints(
    spec: ProviderSpec, integration: Integration, facts: Mapping[str, Any] | None = None
) -> Endpoints:
    """An integration's endpoints: those discovered and kept with it, else the definition's.

    `facts` are what is known of a connection; a callback may have brought a part of a URL.
    """
    if integration.endpoints is not None:
        mutual = client_auth_of(spec, integration) in MUTUAL_TLS
        return integration.endpoints.for_mutual_tls() if mutual else integration.endpoints
    return definition_endpoints(spec, {**integration.params, **params_from_metadata(spec, facts or {})})


def redirect_uri_to_send(spec: ProviderSpec, params: Mapping[str, str], ours: str) -> str:
    """What is sent as redirect_uri: our URL, or the name a provider knows it by."""
    if spec.redirect_uri_override is None:
        return ours
    return fill_template(spec.redirect_uri_override, checked_params(spec, params), spec)


def _caller_params(spec: ProviderSpec, params: Mapping[str, str]) -> dict[str, str]:
    unknown = set(params) - set(spec.authorization_params_from_request)
    if unknown:
        detail = f"{min(unknown)[:64]} is not a parameter a caller may set at {spec.name}"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="params", provider=spec.name)
    return dict(params)


def _implicit_params(extra: Mapping[str, str]) -> dict[str, str]:
    """The token in the fragment, which no server sees: any other response mode puts it elsewhere."""
    return {
        **{name: text for name, text in extra.items() if name != "response_mode"},
        "response_type": "token",
    }


def _in_provider_format(
    spec: ProviderSpec, url: str, scopes: tuple[str, ...], verifier: Secret | None, resources: tuple[str, ...]
) -> str:
    """The standard request in this provider's dialect: names, order, scope writing, fragment."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if verifier is not None and spec.pkce is not Pkce.OFF and spec.pkce_challenge_encoding == "hex":
        challenge = hashlib.sha256(verifier.reveal().encode()).hexdigest()
        query = [(name, challenge if name == "code_challenge" else value) for name, value in query]
    if spec.scopes_supported and (scopes or not spec.omit_empty_scope):
        query.append((spec.scope_param_name, spec.scope_separator.join(scopes)))
    query.extend(("resource", uri) for uri in resources)
    renames: dict[str, str | None] = dict(spec.authorization_param_names)
    if spec.client_id_param != "client_id":
        renames.setdefault("client_id", spec.client_id_param)
    if spec.authorization_client_id_param:
        renames["client_id"] = spec.authorization_client_id_param
    named = [(renames.get(name, name), value) for name, value in query]
    kept = [(name, value) for name, value in named if name is not None]
    order = {name: place for place, name in enumerate(spec.authorization_param_order)}
    kept.sort(key=lambda pair: order.get(pair[0], len(order)))
    raw = spec.scope_separator if spec.scope_raw_encoding else ""
    encoded = "&".join(
        urlencode([(name, value)], quote_via=quote, safe=raw if name == spec.scope_param_name else "")
        for name, value in kept
    )
    if spec.authorization_url_fragment_route:
        return urlunsplit((*parts[:3], "", f"{spec.authorization_url_fragment_route}?{encoded}"))
    return urlunsplit((*parts[:3], encoded, spec.authorization_url_fragment or ""))
