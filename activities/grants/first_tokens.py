"""What the subject's browser brought, exchanged for the first tokens: a code, or a verifier (OAuth 1.0a)."""

from collections.abc import Mapping
from datetime import datetime

from activities.support.provider_context import ProviderContext
from evergrant_server.core.access import Endpoints
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.token_pair import TokenPair
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend
from providers.oauth1.flow import read_token_credentials, token_credentials_request
from providers.requests.sender import Sender
from providers.responses.additional_tokens import additional_token_sets
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens


async def send_code_exchange(
    sender: Sender,
    held: ProviderContext,
    endpoints: Endpoints,
    code: Secret,
    verifier: Secret,
    redirect_uri: str,
    params: Mapping[str, str],
    at: datetime,
    *,
    before_send: BeforeSend,
) -> RawReply:
    """Sent once (RFC 6749 section 4.1.3). In OAuth 1.0a `code` is the `oauth_verifier`, and `verifier`
    the temporary credentials it belongs to (RFC 5849 section 2.3)."""
    if held.connection.flow is Flow.OAUTH1:
        url, temporary = endpoints.token_endpoint, TokenPair.from_secret(verifier)
        request = token_credentials_request(held.spec, url, held.client, temporary, code, at)
        return await sender.send_signed(held.spec, held.client, request, before_send=before_send)
    return await sender.exchange_code(
        held.spec,
        endpoints,
        held.client,
        code=code,
        verifier=verifier,
        redirect_uri=redirect_uri,
        params=params,
        resources=held.resources,
        before_send=before_send,
    )


def read_first_tokens(
    held: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of its answer. Pure. Raises as `read_tokens`."""
    if held.connection.flow is Flow.OAUTH1:
        return read_token_credentials(held.spec, reply, now=came_at)
    tokens = read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"further": additional_token_sets(held.spec, reply, now=came_at)})


def merge_callback(tokens: TokenSet, consent: Consent) -> TokenSet:
    """What came with the code belongs to the grant as what came with the tokens does."""
    scopes = tokens.scopes if tokens.scopes is not None else consent.granted_scopes
    return tokens.model_copy(update={"metadata": tokens.metadata | consent.facts, "scopes": scopes})


def token_endpoint_for_code(consent: Consent, first_asked: Endpoints, asked: Endpoints) -> str | None:
    """Code, verifier and secret go to the endpoint recorded when the browser left (RFC 9700 section
    4.4). When a staged version named it and failed, the version before it names another one of the
    same server: the one whose authorization endpoint gave the code."""
    replaced = consent.token_endpoint == first_asked.token_endpoint
    same_server = first_asked.authorization_endpoint == asked.authorization_endpoint
    return asked.token_endpoint if replaced and same_server else consent.token_endpoint
