"""Builds the authorization request's URL (RFC 6749 section 4.1.1, RFC 7636).

authlib builds the standard request, which is then rewritten in the provider's format.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from authlib.oauth2.client import OAuth2Client

from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import Pkce
from providers.definition.templates import (
    checked_params,
    fill_params,
    integration_endpoints,
    redirect_uri_to_send,
    require_complete,
)

_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")  # RFC 7636 section 4.1
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3


def new_random_value() -> Secret:
    """256 random bits in 43 characters, for a verifier, a state or a nonce.

    RFC 7636 section 4.1, OpenID Connect Core 1.0 section 15.5.2.
    """
    return Secret(secrets.token_urlsafe(32))


def asks_for_id_token(spec: ProviderSpec, integration: Integration, scopes: Sequence[str]) -> bool:
    """Whether a request for these scopes yields an id token.

    OpenID Connect Core 1.0 section 3.1.2.1. Raises as `requested_scopes`.
    """
    types = spec.authorization_params.get("response_type", "").split()
    return "openid" in requested_scopes(spec, integration, scopes) or "id_token" in types


def sends_nonce(spec: ProviderSpec, integration: Integration, scopes: Sequence[str]) -> bool:
    """Whether the request has a nonce, which its id token repeats. Raises as `requested_scopes`."""
    return spec.id_token_nonce and asks_for_id_token(spec, integration, scopes)


def account_params(
    spec: ProviderSpec,
    integration: Integration,
    scopes: Sequence[str],
    *,
    login_hint: str | None,
    select_account: bool,
) -> dict[str, str]:
    """The parameters that lead to the right account (OpenID Connect Core 1.0 section 3.1.2.1).

    Only those that the server knows: by OpenID Connect, or by its definition. Raises as
    `requested_scopes`.
    """
    openid = asks_for_id_token(spec, integration, scopes)
    prompt = spec.authorization_params.get("prompt", "").split()
    wanted = {"login_hint": login_hint}
    if select_account and "none" not in prompt:
        wanted["prompt"] = " ".join(dict.fromkeys((*prompt, "select_account")))
    known = spec.authorization_params_from_request
    return {name: value for name, value in wanted.items() if value and (openid or name in known)}


def requested_scopes(spec: ProviderSpec, integration: Integration, scopes: Sequence[str]) -> tuple[str, ...]:
    """The scopes of a consent: `scopes`, else the defaults, and the offline scope.

    A discovered server gets the offline scope only if its metadata lists it.

    Raises Failure INVALID_REQUEST (field `scopes`) for an invalid scope.
    """
    if not spec.scopes_supported:
        return ()
    requested = tuple(scopes) or integration.scopes_by_default or spec.default_scopes
    if spec.offline_scope and (not spec.discovery or _offers_offline_access(integration)):
        requested = (*requested, spec.offline_scope)
    return _checked_scopes(spec, requested, "scopes")


def _offers_offline_access(integration: Integration) -> bool:
    return integration.endpoints is not None and integration.endpoints.offline_access


def _checked_scopes(spec: ProviderSpec, scopes: Sequence[str], field: str) -> tuple[str, ...]:
    for scope in scopes:
        if not _SCOPE.fullmatch(scope) or spec.scope_separator in scope:
            raise Failure(ErrorCode.INVALID_REQUEST, f"{scope[:80]!r} is not a scope", field=field)
    return tuple(dict.fromkeys(scopes))


def token_slot_scope_params(
    spec: ProviderSpec, slot_scopes: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The scopes of further token slots, by their parameter.

    Raises Failure INVALID_REQUEST (field `slot_scopes`).
    """
    unknown = set(slot_scopes) - set(spec.scope_params)
    if unknown:
        detail = f"{spec.name} has no separate scopes for {min(unknown)[:64]}"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="slot_scopes", provider=spec.name)
    return {
        spec.scope_params[slot]: _checked_scopes(spec, scopes, "slot_scopes")
        for slot, scopes in slot_scopes.items()
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
    account: Mapping[str, str] | None = None,
    target: TokenTarget | None = None,
    dpop_jkt: str | None = None,
    nonce: Secret | None = None,
) -> str:
    """The URL of the authorization request. It holds the verifier only as its S256 challenge.

    Without a verifier it is an implicit request (RFC 6749 section 4.2.1). `slot_scopes`: of further token
    slots. `account`: of `account_params`. `params`: the app's own, which the definition must list. `target`:
    RFC 8707 section 2.1. `dpop_jkt`: RFC 9449 section 10. The id token repeats `nonce`. Raises Failure
    INVALID_REQUEST when the provider doesn't support this.
    """
    spec.require_usable(Flow.AUTHORIZATION_CODE if verifier is not None else Flow.IMPLICIT)
    if verifier is not None and (not _VERIFIER.fullmatch(verifier.reveal()) or verifier == state):
        raise Failure(ErrorCode.INTERNAL, "a PKCE verifier must be 43 to 128 characters and not the state")
    extra = fill_params(spec, spec.authorization_params, checked_params(spec, integration.params))
    extra |= {**_caller_params(spec, params or {}), **(account or {})}
    if verifier is None:
        extra.pop("response_mode", None)  # always the fragment, without a refresh token (section 4.2.2)
        extra["response_type"] = "token"
        spec = spec.__replace__(offline_scope=None)
    of_standards = (("audience", target.audience if target else None), ("dpop_jkt", dpop_jkt))
    extra |= {name: value for name, value in of_standards if value}
    extra |= {"nonce": nonce.reveal()} if nonce else {}
    slots = token_slot_scope_params(spec, slot_scopes or {})
    extra |= {param: spec.scope_separator.join(its_scopes) for param, its_scopes in slots.items()}
    url, query = _standard_request(spec, integration, redirect_uri, state, verifier, extra)
    query += _scope_params(spec, requested_scopes(spec, integration, scopes), asks="prompt" in dict(query))
    query += [("resource", uri) for uri in (target.resources if target else ())]
    return _in_provider_format(spec, url, query)


def _scope_params(spec: ProviderSpec, requested: Sequence[str], *, asks: bool) -> list[tuple[str, str]]:
    """`asks`: the request says already whether the subject is asked."""
    params: list[tuple[str, str]] = []
    if spec.discovery and {"openid", spec.offline_scope} <= set(requested) and not asks:
        params.append(("prompt", "consent"))  # without it offline_access is ignored (OIDC Core section 11)
    if requested:
        params.append((spec.scope_param_name, spec.scope_separator.join(requested)))
    return params


def _authorization_endpoint(spec: ProviderSpec, integration: Integration) -> str:
    endpoint = integration_endpoints(spec, integration).authorization_endpoint
    if endpoint is None:
        detail = f"{spec.name} has no authorization endpoint"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field="flow")
    return endpoint


def _standard_request(
    spec: ProviderSpec,
    integration: Integration,
    redirect_uri: str,
    state: Secret,
    verifier: Secret | None,
    extra: Mapping[str, str],
) -> tuple[str, list[tuple[str, str]]]:
    """The URL as RFC 6749 and RFC 7636 have it, and its query; without scopes, whose name and separator may
    differ."""
    challenged = verifier if spec.pkce is not Pkce.OFF else None
    authlib = OAuth2Client(None, client_id=integration.client_id, code_challenge_method="S256")
    url, _ = authlib.create_authorization_url(
        require_complete(spec, _authorization_endpoint(spec, integration)),
        state=state.reveal(),
        code_verifier=challenged.reveal() if challenged is not None else None,
        redirect_uri=redirect_uri_to_send(spec, integration.params, redirect_uri),
        scope=None,
        **extra,
    )
    query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    if challenged is not None and spec.pkce_challenge_encoding == "hex":
        challenge = hashlib.sha256(challenged.reveal().encode()).hexdigest()
        query = [(name, challenge if name == "code_challenge" else value) for name, value in query]
    return url, query


def _caller_params(spec: ProviderSpec, params: Mapping[str, str]) -> dict[str, str]:
    unknown = set(params) - set(spec.authorization_params_from_request)
    if unknown:
        detail = f"{min(unknown)[:64]} is not a parameter that an app may set at {spec.name}"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="params", provider=spec.name)
    return dict(params)


def _in_provider_format(spec: ProviderSpec, url: str, query: Sequence[tuple[str, str]]) -> str:
    """The URL with the query in the provider's names, order and encoding, and with its fragment."""
    renames: dict[str, str | None] = dict(spec.authorization_param_names)
    if spec.client_id_param != "client_id":
        renames.setdefault("client_id", spec.client_id_param)
    if spec.authorization_client_id_param:
        renames["client_id"] = spec.authorization_client_id_param
    renamed = [(renames.get(name, name), value) for name, value in query]
    pairs = [(name, value) for name, value in renamed if name is not None]
    order = {name: index for index, name in enumerate(spec.authorization_param_order)}
    pairs.sort(key=lambda pair: order.get(pair[0], len(order)))
    raw = spec.scope_separator if spec.scope_raw_encoding else ""
    encoded = "&".join(
        urlencode([(name, value)], quote_via=quote, safe=raw if name == spec.scope_param_name else "")
        for name, value in pairs
    )
    base = urlsplit(url)[:3]
    if spec.authorization_url_fragment_route:
        return urlunsplit((*base, "", f"{spec.authorization_url_fragment_route}?{encoded}"))
    return urlunsplit((*base, encoded, spec.authorization_url_fragment or ""))
