"""The tokens of a provider's reply, by flow. Pure."""

from datetime import datetime

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from providers.oauth1.flow import read_token_credentials
from providers.requests.client_grants import read_exchanged_token
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens


def read_refreshed_tokens(context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
    """The tokens of a refresh. Raises as `read_tokens`."""
    if context.connection.flow.is_client_grant:
        return read_client_grant_tokens(context, reply, context.connection.requested_scopes, came_at)
    scopes = context.grant.scopes if context.grant else ()
    try:
        return read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at)
    except Failure as failure:
        never_bound = context.grant is not None and context.grant.token_type != DPOP_TOKEN_TYPE
        if failure.code is not ErrorCode.REPLY_UNREADABLE or not (context.spec.dpop and never_bound):
            raise
        # DPoP was required after the consent and the provider didn't bind these: bearer tokens as before
        bearer = context.spec.model_copy(update={"dpop": False})
        return read_tokens(bearer, reply, requested_scopes=scopes, refreshing=True, now=came_at)


def read_client_grant_tokens(
    context: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a client grant, without a refresh token, which nothing needs (RFC 6749 section
    4.4.3). Raises as `read_tokens`."""
    if context.connection.flow is Flow.TOKEN_EXCHANGE:
        tokens = read_exchanged_token(context.spec, reply, requested_scopes=scopes, now=came_at)
    else:
        tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"refresh_token": None, "refresh_expires_in": None})


def read_first_tokens(
    context: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a code exchange. Raises as `read_tokens`."""
    if context.connection.flow is Flow.OAUTH1:
        return read_token_credentials(context.spec, reply, now=came_at)
    tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"further": additional_token_sets(context.spec, reply, now=came_at)})


def merge_callback(tokens: TokenSet, consent: Consent) -> TokenSet:
    """The tokens with the scopes and metadata of the consent's callback."""
    scopes = tokens.scopes if tokens.scopes is not None else consent.granted_scopes
    return tokens.model_copy(update={"metadata": tokens.metadata | consent.facts, "scopes": scopes})


def token_endpoint_for_code(consent: Consent, loaded: Endpoints, current: Endpoints) -> str | None:
    """The endpoint that was recorded when the browser left (RFC 9700 section 4.4).

    When a staged definition named it and failed, the definition before it names another endpoint
    of the same server: the server whose authorization endpoint gave the code.
    """
    replaced = consent.token_endpoint == loaded.token_endpoint
    same_server = loaded.authorization_endpoint == current.authorization_endpoint
    return current.token_endpoint if replaced and same_server else consent.token_endpoint
