"""What the subject's browser brought, exchanged for the first tokens: a code, or a verifier (OAuth 1.0a)."""

from collections.abc import Mapping
from datetime import datetime

from activities.holdings import Holdings
from evergrant_server.core.access import Endpoints
from evergrant_server.core.consent import Consent
from evergrant_server.core.flow import Flow
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.secret import Secret
from evergrant_server.core.token_pair import TokenPair
from evergrant_server.egress import BeforeSend
from providers.chains import further_chains
from providers.flows import Sender
from providers.oauth1 import read_token_credentials, token_request
from providers.replies import read_tokens
from providers.reply import RawReply


async def by_code(
    sender: Sender,
    held: Holdings,
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
        request = token_request(held.spec, url, held.client, temporary, code, at)
        return await sender.signed(held.spec, held.client, request, before_send=before_send)
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


def first_tokens(held: Holdings, reply: RawReply, scopes: tuple[str, ...], came_at: datetime) -> TokenSet:
    """The tokens of its answer. Pure. Raises as `read_tokens`."""
    if held.connection.flow is Flow.OAUTH1:
        return read_token_credentials(held.spec, reply, now=came_at)
    tokens = read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"further": further_chains(held.spec, reply, now=came_at)})


def with_callback(tokens: TokenSet, consent: Consent) -> TokenSet:
    """What came with the code belongs to the grant as what came with the tokens does."""
    scopes = tokens.scopes if tokens.scopes is not None else consent.granted_scopes
    return tokens.model_copy(update={"metadata": tokens.metadata | consent.facts, "scopes": scopes})


def code_endpoint(consent: Consent, first_asked: Endpoints, asked: Endpoints) -> str | None:
    """Code, verifier and secret go to the endpoint recorded when the browser left (RFC 9700 section
    4.4). When a staged version named it and failed, the version before it names another one of the
    same server: the one whose authorization endpoint gave the code."""
    replaced = consent.token_endpoint == first_asked.token_endpoint
    same_server = first_asked.authorization_endpoint == asked.authorization_endpoint
    return asked.token_endpoint if replaced and same_server else consent.token_endpoint
