"""The OAuth 1.0a flow (RFC 5849 section 2): endpoints, requests, replies and callbacks. Pure.

Temporary credentials, the subject's consent, token credentials. Each request is signed.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from evergrant_server.core.connections.credentials import OAUTH1, TokenPair
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import OAuth1Spec
from providers.definition.schema_response import ResponseSpec
from providers.definition.templates import checked_params, fill_template
from providers.oauth1.signing import oauth1_authorization_header
from providers.requests.authorization_url import requested_scopes
from providers.requests.callback import Callback
from providers.requests.callback_parameters import Query, reject_callback, unique_params
from providers.requests.request_format import NO_AUTH, ProviderAccess, ProviderRequest, filled_params
from providers.responses.error_mapping import raise_for_failure, reply_fields, unreadable_reply
from providers.responses.raw_reply import RawReply, UnreadableBody, is_metadata_value, seconds_until
from providers.responses.reply_words import words_of_reply

_DENIED_PARAM = "denied"  # X and others: the token of a refused consent
_PROBLEM_PARAM = "oauth_problem"  # the Problem Reporting extension
_DENIAL_PROBLEMS = ("user_refused", "permission_denied")
_MAX_LENGTH = 2048


@dataclass(frozen=True)
class OAuth1Endpoints:
    """The three endpoints (RFC 5849 section 2)."""

    temporary: str
    authorization: str
    token: str


def oauth1_spec(spec: ProviderSpec) -> OAuth1Spec:
    return spec.oauth1 or OAuth1Spec()


def oauth1_endpoints(spec: ProviderSpec, integration: Integration) -> OAuth1Endpoints:
    """Raises Failure INVALID_REQUEST when the definition lacks one, or a parameter is missing."""
    rule, values = oauth1_spec(spec), checked_params(spec, integration.params)
    named = {
        "request_token_endpoint": spec.request_token_endpoint,
        "authorization_endpoint": rule.authorization_endpoint or spec.authorization_endpoint,
        "token_endpoint": rule.token_endpoint or spec.token_endpoint,
    }
    for name, url in named.items():
        if url is None:
            detail = f"{spec.name} has no {name} for OAuth 1.0a"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, provider=spec.name, field=name)
    temporary, page, token = (fill_template(str(url), values, spec) for url in named.values())
    return OAuth1Endpoints(temporary, page, token)


def temporary_credentials_request(
    provider: ProviderAccess, url: str, callback: str, at: datetime
) -> ProviderRequest:
    """RFC 5849 section 2.1. Raises as `oauth1_authorization_header`."""
    return _signed_request(provider, url, at, None, ("oauth_callback", callback))


def token_credentials_request(
    provider: ProviderAccess, url: str, temporary: TokenPair, verifier: Secret, at: datetime
) -> ProviderRequest:
    """RFC 5849 section 2.3. Raises as `oauth1_authorization_header`."""
    return _signed_request(provider, url, at, temporary, ("oauth_verifier", verifier.reveal()))


def _signed_request(
    provider: ProviderAccess, url: str, at: datetime, pair: TokenPair | None, param: tuple[str, str]
) -> ProviderRequest:
    spec, client = provider.spec, provider.client
    rule = oauth1_spec(spec)
    header = oauth1_authorization_header(
        client, rule.signature_method, rule.method, url, at=at, pair=pair, realm=rule.realm, protocol=(param,)
    )
    fixed = {"Accept": "*/*", "User-Agent": "Evergrant"}
    headers = {**fixed, **spec.required_headers, "Authorization": header}
    return ProviderRequest(url, method=rule.method, auth=NO_AUTH, body_format="none", headers=headers)


def oauth1_authorization_url(
    spec: ProviderSpec, integration: Integration, temporary: TokenPair, scopes: Sequence[str]
) -> str:
    """The URL of the consent page (RFC 5849 section 2.2)."""
    parts = urlsplit(oauth1_endpoints(spec, integration).authorization)
    query = parse_qsl(parts.query, keep_blank_values=True)
    query.append(("oauth_token", temporary.token.reveal()))
    query.extend(filled_params(spec, spec.authorization_params, integration.params).items())
    requested = requested_scopes(spec, integration, scopes)
    if oauth1_spec(spec).scope_in == "authorization" and requested:
        query.append((spec.scope_param_name, spec.scope_separator.join(requested)))
    return urlunsplit((*parts[:3], urlencode(query, quote_via=quote), ""))


def read_temporary_credentials(spec: ProviderSpec, reply: RawReply) -> TokenPair:
    """Temporary credentials (RFC 5849 section 2.1). Raises as `read_tokens`.

    A reply without `oauth_callback_confirmed` is refused: in OAuth 1.0 one person could finish the
    consent that another had started.
    """
    pair, fields = _read_token_pair(spec, reply, ErrorCode.CLIENT_REJECTED)
    if fields.get("oauth_callback_confirmed") != "true":
        raise unreadable_reply(spec, reply, "no oauth_callback_confirmed, as in OAuth 1.0")
    return pair


def read_token_credentials(spec: ProviderSpec, reply: RawReply, *, now: datetime) -> TokenSet:
    """Token credentials (RFC 5849 section 2.3), as one secret. Raises as `read_tokens`."""
    pair, fields = _read_token_pair(spec, reply, ErrorCode.GRANT_REJECTED)
    response = spec.response
    metadata = {path: str(fields[path]) for path in response.metadata_paths if path in fields}
    expiry = fields.get(response.expires_at_path or "")
    try:
        expires_in = seconds_until(expiry, "an expiry", response.expires_at_format, now)
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    return TokenSet(
        access_token=pair.as_secret(),
        token_type=OAUTH1,
        expires_in=expires_in,
        scopes=() if oauth1_spec(spec).scope_in == "none" else None,
        metadata={name: value for name, value in metadata.items() if is_metadata_value(value)},
    )


def _read_token_pair(
    spec: ProviderSpec, reply: RawReply, refused: ErrorCode
) -> tuple[TokenPair, dict[str, object]]:
    """Token and secret, and the reply's fields. 401 means refused credentials (RFC 5849 section 3.2)."""
    read = spec.__replace__(response=ResponseSpec(), account_id=None, success_statuses=(200,))
    if reply.status == 401:
        problem = None
        with suppress(Failure):  # without a body
            problem = reply_fields(read, reply).get(_PROBLEM_PARAM)
        words = words_of_reply(read, reply, problem if isinstance(problem, str) else None)
        why = f"{spec.name} answered with status 401"
        raise ReplyFailure(refused, why, provider=spec.name).with_words(words)
    raise_for_failure(read, reply, (200,))
    fields = reply_fields(read, reply)
    token, secret = fields.get("oauth_token"), fields.get("oauth_token_secret")
    for name, value in (("oauth_token", token), ("oauth_token_secret", secret)):
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise unreadable_reply(spec, reply, f"no {name} that is valid")
    if not token:
        raise unreadable_reply(spec, reply, "an empty oauth_token")
    return TokenPair(Secret(str(token)), Secret(str(secret))), fields


def temporary_token_in(query: Query) -> Secret | None:
    """The temporary token of a callback, which identifies the consent as `state` does in OAuth 2.

    None for a callback of another protocol. Raises Failure CALLBACK_INVALID when it is repeated.
    """
    for name in ("oauth_token", _DENIED_PARAM):
        if any(key == name for key, _ in query):
            return _single_value(query, name)
    return None


def read_oauth1_callback(query: Query) -> Callback:
    """Read a callback (RFC 5849 section 2.2). Raises Failure CALLBACK_INVALID."""
    params = unique_params(query)
    token = temporary_token_in(query)
    problem = params.get(_PROBLEM_PARAM)
    if _DENIED_PARAM in params or problem in _DENIAL_PROBLEMS:
        return Callback(None, token, denied=True, error=problem)
    if problem is not None:
        return Callback(None, token, denied=False, error=problem if problem.isidentifier() else "problem")
    return Callback(_single_value(query, "oauth_verifier"), token, denied=False, error=None)


def _single_value(query: Query, name: str) -> Secret:
    values = [value for key, value in query if key == name]
    good = len(values) == 1 and values[0].isascii() and values[0].isprintable()
    if not good or not 0 < len(values[0]) <= _MAX_LENGTH:
        reject_callback(f"{name} is malformed")
    return Secret(values[0])
