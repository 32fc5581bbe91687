"""What a new access token is made from: a refresh token, the one before it, or what we hold ourselves."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from activities.single_use.protocol import SendRequest
from activities.support.provider_context import ProviderContext
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.proof_key import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.refresh_rules import RefreshRules, Rotation
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema_lifecycle import RefreshSpec
from providers.requests.client_grants import ClientGrantInput, client_grant_request, read_exchanged_token
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

NO_CREDENTIAL_SPENT = RefreshRules(rotation=Rotation.NONE)


@dataclass(frozen=True)
class TokenRequest:
    """How the next token is asked for, and what an answer that was lost may have cost."""

    rules: RefreshRules
    send: SendRequest


def refresh_token_request(sender: Sender, held: ProviderContext, token: Secret) -> TokenRequest:
    """Spend the refresh token (RFC 6749 section 6)."""
    assert held.grant is not None
    scopes = held.grant.scopes
    return TokenRequest(
        held.integration.refresh,
        lambda check: sender.refresh(
            held.spec,
            held.endpoints,
            held.client,
            refresh_token=token,
            scopes=scopes,
            redirect_uri=held.redirect_uri,
            params=held.params,
            flow=held.connection.flow,
            resources=held.resources,
            before_send=check,
        ),
    )


def access_token_request(
    sender: Sender, held: ProviderContext, rule: RefreshSpec, token: Secret
) -> TokenRequest:
    """Exchange the access token while it is good; it stays good, so nothing is spent."""
    return TokenRequest(
        NO_CREDENTIAL_SPENT,
        lambda check: sender.exchange_access_token(
            held.spec,
            held.endpoints,
            held.client,
            rule,
            token=token,
            params=held.params,
            before_send=check,
        ),
    )


def token_request_by_client_grant(
    sender: Sender,
    clock: Clock,
    held: ProviderContext,
    scopes: tuple[str, ...],
    subject_token: Secret | None = None,
) -> TokenRequest:
    """Ask again as at first: nothing is spent, so an answer that was lost costs another request."""
    connection = held.connection
    asked = ClientGrantInput(
        scopes=scopes,
        target=connection.target,
        subject=connection.subject,
        params=held.params,
        at=clock.now(),
        subject_token=subject_token,
    )
    request = client_grant_request(held.spec, connection.flow, held.endpoints, held.client, asked)
    return TokenRequest(
        NO_CREDENTIAL_SPENT,
        lambda check: sender.send_prepared(held.spec, held.client, request, before_send=check),
    )


@dataclass
class ResponseParser:
    """Reads an answer that may bring tokens. What a staged version can't read, or takes for a
    refusal although it came with 2xx, is read as before it: the tokens in it come once."""

    context: ProviderContext
    read: Callable[[ProviderContext, RawReply], TokenSet]  # pure
    used_previous_definition: bool = False

    def tokens(self, reply: RawReply) -> TokenSet:
        """Raises as `read`."""
        try:
            return self.read(self.context, reply)
        except Failure as failure:
            said_yes = failure.code is ErrorCode.REPLY_UNREADABLE or 200 <= reply.status < 300
            if not self.context.provisional or not said_yes:
                raise
            with suppress(Failure):
                tokens = self.read(self.context.with_previous_definition(), reply)
                self.used_previous_definition = True
                return tokens
            raise


def read_refreshed_tokens(held: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
    """The tokens of an answer to a renewal. Pure. Raises as `read_tokens`."""
    if held.connection.flow.is_client_grant:
        return read_client_grant_tokens(held, reply, held.connection.requested_scopes, came_at)
    scopes = held.grant.scopes if held.grant else ()
    try:
        return read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at)
    except Failure as failure:
        never_bound = held.grant is not None and held.grant.token_type != DPOP_TOKEN_TYPE
        if failure.code is not ErrorCode.REPLY_UNREADABLE or not (held.spec.dpop and never_bound):
            raise
        # binding was wanted later, and not done: these are as good as those before, which are spent
        bearer = held.spec.model_copy(update={"dpop": False})
        return read_tokens(bearer, reply, requested_scopes=scopes, refreshing=True, now=came_at)


def read_client_grant_tokens(
    held: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a minting, without a refresh token: one more secret, which nothing needs
    (RFC 6749 section 4.4.3). Pure. Raises as `read_tokens`."""
    if held.connection.flow is Flow.TOKEN_EXCHANGE:
        tokens = read_exchanged_token(held.spec, reply, requested_scopes=scopes, now=came_at)
    else:
        tokens = read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"refresh_token": None, "refresh_expires_in": None})
