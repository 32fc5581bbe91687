"""Token requests: the credential that is sent for a new access token, and whether it may be sent twice.

`providers.requests.sender` sends it; `request_writer` there writes it in the provider's format.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.integrations import Endpoints, RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend
from providers.definition.schema_response import RefreshSpec
from providers.oauth1.flow import read_token_credentials, token_credentials_request
from providers.requests.client_grants import PreparedRequest
from providers.requests.request_format import access_token_exchange_request
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens

NO_CREDENTIAL_SPENT = RefreshRules(rotation=Rotation.NONE)
CODE_RULES = RefreshRules(rotation=Rotation.STRICT)  # RFC 6749 section 4.1.2


@dataclass(frozen=True)
class TokenRequest(ABC):
    """One request to a token endpoint. `rules` say whether its credential may be sent twice."""

    context: ProviderContext
    rules: RefreshRules

    @abstractmethod
    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        """Send once. Raises as `Sender`."""


@dataclass(frozen=True)
class RefreshTokenRequest(TokenRequest):
    """Spends a refresh token (RFC 6749 section 6). `scopes`: for an access token with these alone."""

    token: Secret
    scopes: tuple[str, ...] = ()

    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        context = self.context
        return sender.refresh(
            context,
            refresh_token=self.token,
            redirect_uri=context.redirect_uri,
            flow=context.connection.flow,
            resources=context.resources,
            scopes=self._requested_scopes(),
            before_send=before_send,
        )

    def _requested_scopes(self) -> tuple[str, ...]:
        """With the offline scope, without which some providers issue no further refresh token."""
        offline, grant = self.context.spec.offline_scope, self.context.grant
        kept = offline is not None and grant is not None and offline in grant.scopes
        return (*self.scopes, str(offline)) if self.scopes and kept else self.scopes


@dataclass(frozen=True)
class PreparedTokenRequest(TokenRequest):
    """Sends a request that `providers` has built: such as a client grant or a poll."""

    request: PreparedRequest

    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        return sender.send_prepared(self.context, self.request, before_send=before_send)


def access_token_exchange(context: ProviderContext, rule: RefreshSpec, token: Secret) -> PreparedTokenRequest:
    """Exchanges a valid access token, which stays valid: nothing is spent."""
    request = access_token_exchange_request(context, rule, token)
    return PreparedTokenRequest(context, NO_CREDENTIAL_SPENT, request)


@dataclass(frozen=True)
class CodeExchangeRequest(TokenRequest):
    """Spends an authorization code (RFC 6749 section 4.1.3).

    In OAuth 1.0a `code` is the `oauth_verifier`, and `verifier` the temporary credentials it
    belongs to (RFC 5849 section 2.3).
    """

    endpoints: Endpoints
    code: Secret
    verifier: Secret
    redirect_uri: str
    params: Mapping[str, str]
    at: datetime

    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        context = self.context
        if context.connection.flow is Flow.OAUTH1:
            url, temporary = self.endpoints.token_endpoint, TokenPair.from_secret(self.verifier)
            request = token_credentials_request(context, url, temporary, self.code, self.at)
            return sender.send_signed(context, request, before_send=before_send)
        return sender.exchange_code(
            replace(context, endpoints=self.endpoints, params=self.params),
            code=self.code,
            verifier=self.verifier,
            redirect_uri=self.redirect_uri,
            resources=context.resources,
            before_send=before_send,
        )


def read_first_tokens(
    context: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a code exchange. Raises as `read_tokens`."""
    if context.connection.flow is Flow.OAUTH1:
        return read_token_credentials(context.spec, reply, now=came_at)
    tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.__replace__(further=additional_token_sets(context.spec, reply, now=came_at))
