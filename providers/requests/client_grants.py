"""Token requests without a subject's consent: client credentials, JWT bearer, token exchange.

Pure but for an assertion's random id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth import sign_jwt
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import PLACEHOLDER
from providers.definition.schema_request import ClientCredentialsGrant, JwtBearerGrant, TokenExchangeGrant
from providers.definition.templates import checked_params
from providers.requests.request_format import (
    ProviderAccess,
    ProviderRequest,
    token_request,
)
from providers.responses.error_mapping import reply_fields, unreadable_reply
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
_ACCESS_TOKEN_TYPES = (ACCESS_TOKEN_TYPE, "urn:ietf:params:oauth:token-type:jwt")
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True)
class ClientGrantInput:
    scopes: tuple[str, ...]
    target: TokenTarget
    subject: str
    at: datetime
    subject_token: Secret | None = None  # for token exchange


def client_grant_request(provider: ProviderAccess, flow: Flow, grant: ClientGrantInput) -> ProviderRequest:
    """The token request of a client grant.

    Raises Failure INVALID_REQUEST when the definition doesn't support the flow, CLIENT_REJECTED
    when the integration lacks a key or a subject token.
    """
    spec = provider.spec
    spec.require_usable(flow)
    match flow:
        case Flow.CLIENT_CREDENTIALS:
            rule = spec.client_credentials or ClientCredentialsGrant()
            return _token_request(provider, grant, rule.grant_type, rule.params)
        case Flow.JWT_BEARER:
            assertion = {"assertion": _jwt_bearer_assertion(provider, grant)}
            return _token_request(provider, grant, JWT_BEARER, {}, assertion)
        case Flow.TOKEN_EXCHANGE:
            rule = spec.token_exchange or TokenExchangeGrant()
            if grant.subject_token is None:
                detail = "there is no token to exchange"
                raise Failure(ErrorCode.CLIENT_REJECTED, detail, field="subject_token")
            exchanged = {  # RFC 8693 section 2.1
                "subject_token": grant.subject_token.reveal(),
                "subject_token_type": grant.target.subject_token_type or ACCESS_TOKEN_TYPE,
                "requested_token_type": ACCESS_TOKEN_TYPE,
            }
            return _token_request(provider, grant, TOKEN_EXCHANGE, rule.params, exchanged)
        case _:
            detail = f"{flow.value} needs a subject's consent"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="flow", provider=spec.name)


def _token_request(
    provider: ProviderAccess,
    grant: ClientGrantInput,
    grant_type: str,
    templates: Mapping[str, str],
    secrets: Mapping[str, str] | None = None,
) -> ProviderRequest:
    spec = provider.spec
    fields = provider.filled(templates) | dict(secrets or {})
    if grant.scopes and spec.scopes_supported:
        fields[spec.scope_param_name] = spec.scope_separator.join(grant.scopes)
    if grant.target.audience:
        fields["audience"] = grant.target.audience
    return token_request(provider, grant_type, fields).with_resources(grant.target.resources)


def read_exchanged_token(
    spec: ProviderSpec, reply: RawReply, *, requested_scopes: Sequence[str], now: datetime
) -> TokenSet:
    """The access token of a token exchange (RFC 8693 section 2.2.1).

    Raises as `read_tokens`, and REPLY_UNREADABLE when `issued_token_type` is missing or isn't an
    access token's, since the token would be used as a bearer token.
    """
    tokens = read_tokens(spec, reply, requested_scopes=requested_scopes, refreshing=False, now=now)
    issued = reply_fields(spec, reply).get("issued_token_type")
    if issued not in _ACCESS_TOKEN_TYPES:
        known = "no issued_token_type" if issued is None else "an issued_token_type that is no access token"
        raise unreadable_reply(spec, reply, known)
    return tokens


def _jwt_bearer_assertion(provider: ProviderAccess, grant: ClientGrantInput) -> str:
    """The signed assertion that is the grant (RFC 7523 section 3)."""
    spec, endpoints, client = provider.spec, provider.endpoints, provider.client
    if client.key is None:
        detail = f"the integration has no key to sign the assertion that {spec.name} requires"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name, field="client_key")
    rule = spec.jwt_bearer or JwtBearerGrant()
    values = checked_params(spec, provider.params)
    templates = dict(rule.claims)
    for param, claims_then in rule.claims_when.items():
        if values.get(param) == "yes":
            templates |= claims_then
    words = {
        "client_id": client.client_id,
        "subject": grant.subject,
        "scopes": " ".join(grant.scopes),
        "token_endpoint": endpoints.token_endpoint,
        "issuer": endpoints.issuer or endpoints.token_endpoint,
        **values,
    }
    now = int(grant.at.timestamp())
    claims: dict[str, object] = {  # filled in one pass, so that braces in a value stay
        name: PLACEHOLDER.sub(lambda placeholder: words.get(placeholder.group(1), ""), text)
        for name, text in templates.items()
    }
    claims |= {"iat": now, "exp": now + rule.lifetime_s}
    return sign_jwt(client.key, {k: v for k, v in claims.items() if v != ""}, alg=rule.alg)
