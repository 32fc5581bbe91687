"""Token requests: the credential that is sent for a new access token, and whether it may be sent twice."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.integrations import Endpoints, RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend
from providers.definition.schema_lifecycle import RefreshSpec
from providers.oauth1.flow import token_credentials_request
from providers.requests.client_grants import ClientGrantInput, PreparedRequest, client_grant_request
from providers.requests.request_format import access_token_exchange_request
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply

NO_CREDENTIAL_SPENT = RefreshRules(rotation=Rotation.NONE)
CODE_RULES = RefreshRules(rotation=Rotation.STRICT)  # RFC 6749 section 4.1.2


class TokenRequest(ABC):
    """One request to a token endpoint. `rules` say whether its credential may be sent twice."""

    rules: RefreshRules

    @abstractmethod
    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        """Send once. Raises as `Sender`."""


class RefreshTokenRequest(TokenRequest):
    """Spends a refresh token (RFC 6749 section 6)."""

    def __init__(self, context: ProviderContext, token: Secret) -> None:
        self.rules = context.integration.refresh
        self._context = context
        self._token = token

    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        context = self._context
        return sender.refresh(
            context.spec,
            context.endpoints,
            context.client,
            refresh_token=self._token,
            redirect_uri=context.redirect_uri,
            params=context.params,
            flow=context.connection.flow,
            resources=context.resources,
            before_send=before_send,
        )


class PreparedTokenRequest(TokenRequest):
    """Sends a request that `providers` has built, such as a client grant or a poll."""

    def __init__(self, context: ProviderContext, request: PreparedRequest, rules: RefreshRules) -> None:
        self.rules = rules
        self._context = context
        self._request = request

    def send(self, sender: Sender, before_send: BeforeSend) -> Awaitable[RawReply]:
        context = self._context
        return sender.send_prepared(context.spec, context.client, self._request, before_send=before_send)


def access_token_exchange(context: ProviderContext, rule: RefreshSpec, token: Secret) -> PreparedTokenRequest:
    """Exchanges a valid access token, which stays valid: nothing is spent."""
    request = access_token_exchange_request(
        context.spec, context.endpoints, context.client, rule, token, context.params
    )
    return PreparedTokenRequest(context, request, NO_CREDENTIAL_SPENT)


def client_grant_token_request(
    context: ProviderContext, scopes: tuple[str, ...], at: datetime, subject_token: Secret | None
) -> PreparedTokenRequest:
    """A request with the integration's credentials (RFC 6749 section 4.4), sent again after a lost reply."""
    connection = context.connection
    grant_input = ClientGrantInput(
        scopes=scopes,
        target=connection.target,
        subject=connection.subject,
        params=context.params,
        at=at,
        subject_token=subject_token,
    )
    request = client_grant_request(
        context.spec, connection.flow, context.endpoints, context.client, grant_input
    )
    return PreparedTokenRequest(context, request, NO_CREDENTIAL_SPENT)


@dataclass(frozen=True)
class CodeExchangeRequest(TokenRequest):
    """Spends an authorization code (RFC 6749 section 4.1.3).

    In OAuth 1.0a `code` is the `oauth_verifier`, and `verifier` the temporary credentials it
    belongs to (RFC 5849 section 2.3).
    """

    rules = CODE_RULES

    context: ProviderContext
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
            request = token_credentials_request(
                context.spec, url, context.client, temporary, self.code, self.at
            )
            return sender.send_signed(context.spec, context.client, request, before_send=before_send)
        return sender.exchange_code(
            context.spec,
            self.endpoints,
            context.client,
            code=self.code,
            verifier=self.verifier,
            redirect_uri=self.redirect_uri,
            params=self.params,
            resources=context.resources,
            before_send=before_send,
        )
