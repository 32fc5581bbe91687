"""Requests for tokens that nobody has to consent to. Pure, but for an assertion's random id.

Each is a form for the token endpoint; `flows` sends it and `replies` judges what comes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.core.access import Endpoints
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth.assertions import sign_jwt
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import PLACEHOLDER
from providers.definition.schema_request import ClientCredentialsGrant, JwtBearerGrant, TokenExchangeGrant
from providers.definition.templates import checked_params
from providers.requests.client import OAuthClient
from providers.requests.request_format import filled_params
from providers.requests.wire import RequestFormat
from providers.responses.error_mapping import reply_fields, unreadable_reply
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
_ACCESS_TOKEN_TYPES = (ACCESS_TOKEN_TYPE, "urn:ietf:params:oauth:token-type:jwt")
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True)
class ClientGrantInput:
    """Who asks for what: everything a request for a token of our own is made from."""

    scopes: tuple[str, ...]
    target: TokenTarget
    subject: str
    params: Mapping[str, str]
    at: datetime
    subject_token: Secret | None = None  # what is exchanged


@dataclass(frozen=True)
class PreparedRequest:
    """One request to the token endpoint. `dialect` holds the fields: some are secrets, so no repr."""

    url: str
    grant_type: str
    dialect: RequestFormat


def client_grant_request(
    spec: ProviderSpec, flow: Flow, endpoints: Endpoints, client: OAuthClient, asked: ClientGrantInput
) -> PreparedRequest:
    """The request for a token in one of the flows that mint.

    Raises Failure INVALID_REQUEST when the definition doesn't speak this flow, CLIENT_REJECTED
    when the integration lacks what it needs.
    """
    spec.require_usable(flow)
    match flow:
        case Flow.CLIENT_CREDENTIALS:
            rule = spec.client_credentials or ClientCredentialsGrant()
            return _prepared(spec, endpoints, client, asked, rule.grant_type, rule.params)
        case Flow.JWT_BEARER:
            assertion = {"assertion": _jwt_bearer_assertion(spec, endpoints, client, asked)}
            return _prepared(spec, endpoints, client, asked, JWT_BEARER, {}, assertion)
        case Flow.TOKEN_EXCHANGE:
            rule = spec.token_exchange or TokenExchangeGrant()
            return _prepared(
                spec, endpoints, client, asked, TOKEN_EXCHANGE, rule.params, _subject_token_params(asked)
            )
        case _:
            detail = f"{flow.value} needs somebody who consents"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="flow", provider=spec.name)


def _prepared(
    spec: ProviderSpec,
    endpoints: Endpoints,
    client: OAuthClient,
    asked: ClientGrantInput,
    grant_type: str,
    templates: Mapping[str, str],
    secrets: Mapping[str, str] | None = None,
) -> PreparedRequest:
    fields = filled_params(spec, templates, asked.params) | dict(secrets or {})
    if asked.scopes and spec.scopes_supported:
        fields[spec.scope_param_name] = spec.scope_separator.join(asked.scopes)
    if asked.target.audience:
        fields["audience"] = asked.target.audience
    dialect = RequestFormat(
        method=spec.token_request_method,
        body_format=spec.token_request_format.value,
        auth=client.auth,
        renames=spec.token_request_param_names,
        extra_params=fields,
        repeated_params=tuple(("resource", uri) for uri in asked.target.resources),  # RFC 8707 section 2
        query=filled_params(spec, spec.token_query_params, asked.params),
        headers=spec.token_request_headers,
        requests_tokens=True,
    )
    return PreparedRequest(endpoints.token_endpoint, grant_type, dialect)


def _subject_token_params(asked: ClientGrantInput) -> dict[str, str]:
    """The token that is exchanged, and of what type it is (RFC 8693 section 2.1)."""
    if asked.subject_token is None:
        raise Failure(ErrorCode.CLIENT_REJECTED, "there is no token to exchange", field="subject_token")
    return {
        "subject_token": asked.subject_token.reveal(),
        "subject_token_type": asked.target.subject_token_type or ACCESS_TOKEN_TYPE,
        "requested_token_type": ACCESS_TOKEN_TYPE,
    }


def read_exchanged_token(
    spec: ProviderSpec, reply: RawReply, *, requested_scopes: Sequence[str], now: datetime
) -> TokenSet:
    """The token of an exchange, when it is one that opens an API (RFC 8693 section 2.2.1). Pure.

    Raises as `read_tokens`; REPLY_UNREADABLE without an `issued_token_type`, or for another one:
    what was issued instead may be anything, and would be sent about as a bearer token.
    """
    tokens = read_tokens(spec, reply, requested_scopes=requested_scopes, refreshing=False, now=now)
    issued = reply_fields(spec, reply).get("issued_token_type")
    if issued not in _ACCESS_TOKEN_TYPES:
        known = "no issued_token_type" if issued is None else "an issued_token_type that is no access token"
        raise unreadable_reply(spec, reply, known)
    return tokens


def _jwt_bearer_assertion(
    spec: ProviderSpec, endpoints: Endpoints, client: OAuthClient, asked: ClientGrantInput
) -> str:
    """The grant itself: who we are, for whom, what for, signed (RFC 7523 section 3)."""
    if client.key is None:
        detail = f"the integration has no key, and {spec.name} wants a signed assertion"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name, field="client_key")
    rule = spec.jwt_bearer or JwtBearerGrant()
    given = checked_params(spec, asked.params)
    templates = dict(rule.claims)
    for param, more in rule.claims_when.items():
        if given.get(param) == "yes":
            templates |= more
    words = {
        "client_id": client.client_id,
        "subject": asked.subject,
        "scopes": " ".join(asked.scopes),
        "token_endpoint": endpoints.token_endpoint,
        "issuer": endpoints.issuer or endpoints.token_endpoint,
        **given,
    }
    now = int(asked.at.timestamp())
    claims: dict[str, object] = {name: _fill_claim(text, words) for name, text in templates.items()}
    claims |= {"iat": now, "exp": now + rule.lifetime_s}
    return sign_jwt(client.key, {k: v for k, v in claims.items() if v != ""}, alg=rule.alg)


def _fill_claim(template: str, words: Mapping[str, str]) -> str:
    """The template in one pass: a value that holds braces stays what it is."""
    return PLACEHOLDER.sub(lambda found: words.get(found.group(1), ""), template)
