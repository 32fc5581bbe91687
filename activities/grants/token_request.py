"""Requests for tokens, and about them: what is sent for a new access token, whether it may be sent twice, and
whether a token is active.

`providers.requests` writes them in the provider's format, and sends them.
"""

from dataclasses import dataclass
from datetime import datetime

from activities.single_use.attempt import SpendRequest
from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.provider_events import IntrospectionFinding, judge_introspection
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from providers.definition.schema_response import RefreshSpec
from providers.oauth1.flow import read_token_credentials, token_credentials_request
from providers.requests.request_format import (
    ProviderRequest,
    access_token_exchange_request,
    code_exchange_request,
    introspection_request,
    refresh_request,
)
from providers.requests.sender import Sender
from providers.responses.error_mapping import read_introspection
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens

NO_CREDENTIAL_SPENT = RefreshRules(rotation=Rotation.NONE)
CODE_RULES = RefreshRules(rotation=Rotation.STRICT)  # RFC 6749 section 4.1.2


@dataclass(frozen=True)
class RefreshTokenRequest(SpendRequest):
    """Spends a refresh token (RFC 6749 section 6). `scopes`: for an access token with these alone."""

    access: ProviderContext
    rules: RefreshRules
    token: Secret
    scopes: tuple[str, ...] = ()

    def build(self) -> ProviderRequest:
        context = self.access
        return refresh_request(
            context,
            self.token,
            redirect_uri=context.redirect_uri,
            flow=context.connection.flow,
            resources=context.resources,
            scopes=self._requested_scopes(),
        )

    def _requested_scopes(self) -> tuple[str, ...]:
        """With the offline scope, without which some providers issue no further refresh token."""
        offline, grant = self.access.spec.offline_scope, self.access.grant
        kept = offline is not None and grant is not None and offline in grant.scopes
        return (*self.scopes, str(offline)) if self.scopes and kept else self.scopes


@dataclass(frozen=True)
class PreparedTokenRequest(SpendRequest):
    """Sends a request that `providers` has built: such as a client grant or a poll."""

    access: ProviderContext
    rules: RefreshRules
    request: ProviderRequest

    def build(self) -> ProviderRequest:
        return self.request


def access_token_exchange(context: ProviderContext, rule: RefreshSpec, token: Secret) -> PreparedTokenRequest:
    """Exchanges a valid access token, which stays valid: nothing is spent."""
    request = access_token_exchange_request(context, rule, token)
    return PreparedTokenRequest(context, NO_CREDENTIAL_SPENT, request)


@dataclass(frozen=True)
class CodeExchangeRequest(SpendRequest):
    """Spends an authorization code (RFC 6749 section 4.1.3).

    In OAuth 1.0a `code` is the `oauth_verifier`, and `verifier` the temporary credentials it
    belongs to (RFC 5849 section 2.3).
    """

    access: ProviderContext  # with the endpoints and parameters of the consent
    rules: RefreshRules
    code: Secret
    verifier: Secret
    redirect_uri: str
    at: datetime

    def build(self) -> ProviderRequest:
        context = self.access
        if context.connection.flow is Flow.OAUTH1:
            url, temporary = context.endpoints.token_endpoint, TokenPair.from_secret(self.verifier)
            return token_credentials_request(context, url, temporary, self.code, self.at)
        return code_exchange_request(
            context,
            code=self.code,
            verifier=self.verifier,
            redirect_uri=self.redirect_uri,
            resources=context.resources,
        )


def read_first_tokens(
    context: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a code exchange. Raises as `read_tokens`."""
    if context.connection.flow is Flow.OAUTH1:
        return read_token_credentials(context.spec, reply, now=came_at)
    tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.__replace__(further=additional_token_sets(context.spec, reply, now=came_at))


def supports_introspection(context: ProviderContext) -> bool:
    """True when the provider can introspect this connection's tokens (RFC 7662)."""
    return context.connection.flow.is_bearer and context.endpoints.introspection_endpoint is not None


async def introspect_grant(
    store: Store, sender: Sender, context: ProviderContext, now: datetime
) -> IntrospectionFinding:
    """Introspect the refresh token, and the access token where that gives no answer. Raises Failure."""
    grant, flow = context.grant, context.connection.flow
    async with store.read() as tx:
        refresh = await tx.grants.refresh_token(context.connection)
        access = await tx.grants.access_token(context.connection)
        answers = await tx.introspections.provider_recognizes_tokens(
            context.integration.tenant, context.integration.id
        )
    if flow.is_client_grant:
        refresh = None  # it is a subject token to exchange, often another issuer's
    refresh_active = None
    if refresh is not None:
        refresh_active = await introspect_token(sender, context, refresh, "refresh_token")
    access_active = None
    if not refresh_active and not (refresh_active is False and answers):
        # a static credential is not a token that the provider issued
        valid = grant is not None and grant.is_valid(now) and not flow.is_static
        if valid:
            access_active = await introspect_token(sender, context, access, "access_token")
    return judge_introspection(refresh_active, access_active, refresh_answers=answers)


async def introspect_token(sender: Sender, context: ProviderContext, token: Secret, hint: str) -> bool:
    """The member `active` of the response. Raises Failure for anything but a clear answer."""
    reply = await sender.send(context, introspection_request(context, token, hint))
    return read_introspection(context.spec, reply)
