"""Client grants: tokens for the integration's own credentials, or for a subject token that is exchanged.

RFC 6749 section 4.4, RFC 7523 and RFC 8693. The subject token is another connection's, or an imported one;
for the grant of an identity provider (ID-JAG) it is the id token of the subject's connection there, whose
workflow alone refreshes it. The ID-JAG is in this process's memory only.
"""

from datetime import UTC, datetime, timedelta

from activities.grants import GrantServices
from activities.grants.client_secrets import try_each_secret
from activities.grants.token_request import NO_CREDENTIAL_SPENT, PreparedTokenRequest
from activities.support.provider_context import ProviderContext
from activities.support.temporal import earlier_now
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import Grant, TokenSet
from evergrant_server.core.connections.id_token import claims_of
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.secret import Secret
from evergrant_server.policy import may_exchange, source_scopes
from evergrant_server.store import Transaction
from providers.requests.client_grants import ClientGrantInput, client_grant_request, read_exchanged_token
from providers.requests.id_jag import id_jag_request, id_jag_token_request, read_id_jag, read_id_jag_tokens
from providers.requests.request_format import ProviderRequest
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

_RETRY_AFTER_S = 3.0  # until another connection's workflow has refreshed its token
_ON_THE_WAY = timedelta(seconds=10)  # an id token that ends sooner may have ended when it arrives
_LAST_MOMENT = 2**33  # in the year 2242


async def client_grant_token_request(
    services: GrantServices, by: RequestContext, context: ProviderContext, consent: Consent | None = None
) -> PreparedTokenRequest:
    """The request for a first token of `consent`, or for the next one. It is sent again after a lost reply.

    For an expired token of another connection, that connection's workflow is signalled to refresh
    it. Raises Failure REFRESH_PENDING meanwhile, CONSENT_REQUIRED without any token to exchange,
    and SOURCE_NOT_PERMITTED while the app of the exchange may not lease that connection. Raises as
    `_token_request_of_id_jag`.
    """
    connection = context.connection
    scopes = connection.requested_scopes if consent is None else consent.scopes
    if connection.flow is Flow.ID_JAG:
        request = await _token_request_of_id_jag(services, by, context, scopes)
        return PreparedTokenRequest(context, NO_CREDENTIAL_SPENT, request)
    subject_token = None
    if connection.flow is Flow.TOKEN_EXCHANGE:
        subject_token = await _load_subject_token(services, by, connection, consent)
    grant_input = ClientGrantInput(
        scopes=scopes,
        target=connection.target,
        subject=connection.subject,
        at=services.clock.now(),
        subject_token=subject_token,
    )
    request = client_grant_request(context, connection.flow, grant_input)
    return PreparedTokenRequest(context, NO_CREDENTIAL_SPENT, request)


def read_client_grant_tokens(
    context: ProviderContext, reply: RawReply, scopes: tuple[str, ...], came_at: datetime
) -> TokenSet:
    """The tokens of a client grant, without a refresh token, which nothing needs (RFC 6749 section
    4.4.3). Raises as `read_tokens`."""
    if context.connection.flow is Flow.ID_JAG:
        tokens = read_id_jag_tokens(context.spec, reply, requested_scopes=scopes, now=came_at)
    elif context.connection.flow is Flow.TOKEN_EXCHANGE:
        tokens = read_exchanged_token(context.spec, reply, requested_scopes=scopes, now=came_at)
    else:
        tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.__replace__(refresh_token=None, refresh_expires_in=None)


async def _load_subject_token(
    services: GrantServices, by: RequestContext, connection: Connection, consent: Consent | None
) -> Secret:
    if connection.source is not None:
        return await _load_source_token(services, by, connection, connection.source)
    async with services.store.read() as tx:
        if consent is not None:
            return (await tx.consents.imported_tokens(consent)).access_token
        token = await tx.grants.refresh_token(connection)
    if token is None:
        raise Failure(ErrorCode.CONSENT_REQUIRED, "there is no token to exchange")
    return token


async def _load_source_token(
    services: GrantServices, by: RequestContext, connection: Connection, source_id: ConnectionId
) -> Secret:
    now = earlier_now(services.clock)
    async with services.store.read() as tx:
        source = await tx.connections.get_authentic(connection.tenant, source_id)
        grant = await tx.grants.get(connection.tenant, source_id)
        if source is not None:  # in the transaction that reads the token: nothing is widened in between
            await _require_source_permit(services, tx, connection, source, grant, now)
        active = source is not None and source.state is LifecycleState.ACTIVE and source.held_by is None
        if source is not None and active and grant is not None and grant.is_valid(now):
            return await tx.grants.access_token(source)
    if source is not None and active:
        await _signal_refresh(services, by, source)
    why = "the connection whose token is exchanged has none that is valid"
    raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=_RETRY_AFTER_S)


async def _require_source_permit(
    services: GrantServices,
    tx: Transaction,
    connection: Connection,
    source: Connection,
    grant: Grant | None,
    now: datetime,
) -> None:
    """Raises Failure SOURCE_NOT_PERMITTED unless the app of the exchange may lease the source."""
    app_id = connection.source_app
    app = None if app_id is None else await tx.access.app(connection.tenant, app_id)
    ended = app is None or app.disabled or app.is_over(now)
    permits = [] if app is None or ended else await tx.access.permits_of(app)
    scopes = source_scopes(source, grant, services.contexts.registry.offline_scope(source.provider))
    if not may_exchange(
        permits, source, scopes, now, services.contexts.registry.scope_aliases(source.provider)
    ).allowed:
        raise Failure(ErrorCode.SOURCE_NOT_PERMITTED, source=source.id, source_app=app_id or "none")


# --- a grant of the identity provider (ID-JAG) ---------------------------------------


async def _token_request_of_id_jag(
    services: GrantServices, by: RequestContext, context: ProviderContext, scopes: tuple[str, ...]
) -> ProviderRequest:
    """The token request with an ID-JAG that the identity provider has just issued.

    Raises Failure IDENTITY_NEEDED while the subject has no usable connection there, REFRESH_PENDING while
    that one's workflow renews its id token, CLIENT_REJECTED for an integration without an identity provider
    or an issuer, and as `read_id_jag`.
    """
    issuer, resources = context.endpoints.issuer, context.connection.target.resources
    if issuer is None:
        why = f"no issuer of {context.integration.name} is known, to which an ID-JAG could be addressed"
        raise Failure(ErrorCode.CLIENT_REJECTED, why)
    identity_provider, id_token = await _identity(services, by, context)

    async def ask(provider: ProviderContext) -> Secret:
        asked = id_jag_request(provider, id_token, audience=issuer, resources=resources, scopes=scopes)
        reply = await services.sender.send(provider, asked)
        return read_id_jag(provider.spec, reply, services.clock.now())

    id_jag, _ = await try_each_secret(identity_provider, ask)
    return id_jag_token_request(context, id_jag, resources)


async def _signal_refresh(services: GrantServices, by: RequestContext, source: Connection) -> None:
    """Have the workflow of `source` renew its tokens, for a connection that lives on them."""
    # with the generation that was read: other connections of this source signal at the same time
    reason = "its token is to be exchanged"
    rotate = Rotate(reason=reason, context=by, seen_generation=source.generation)
    message = signal_message(source.tenant, source.id, SignalName.ROTATE, rotate, services.clock.now())
    async with services.store.write() as tx:
        await tx.outbox.add(message)


async def _identity(
    services: GrantServices, by: RequestContext, context: ProviderContext
) -> tuple[ProviderContext, Secret]:
    """The subject's connection at the identity provider, and its id token."""
    connection, name = context.connection, context.integration.identity_provider
    if name is None:
        why = f"{context.integration.name} names no identity provider any more"
        raise Failure(ErrorCode.CLIENT_REJECTED, why)
    async with services.store.read() as tx:
        source = await tx.connections.by_names(connection.tenant, name, connection.subject, connection.label)
        if source is None or source.state is not LifecycleState.ACTIVE:
            raise _needed(name, source)
        id_token = await tx.grants.id_token(source)
    identity_provider = await services.contexts.load(source.tenant, source.id)
    if id_token is None or identity_provider.grant is None:
        raise _needed(name, source)
    ends = _end_of(id_token)
    if ends is None or earlier_now(services.clock) + _ON_THE_WAY < ends:
        return identity_provider, id_token
    if not _may_bring_another(identity_provider.grant, ends):
        raise _needed(name, source)
    await _signal_refresh(services, by, source)
    why = f"the id token of {source.id} at {name} has ended, and is renewed"
    raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=_RETRY_AFTER_S)


def _may_bring_another(grant: Grant, ends: datetime) -> bool:
    """False when a refresh after the id token's end has brought no other one."""
    return grant.refreshable and grant.obtained_at + _ON_THE_WAY < ends


def _end_of(id_token: Secret) -> datetime | None:
    """None for a token that this client can't read, whose end its issuer knows."""
    ends = claims_of(id_token).get("exp")
    if not isinstance(ends, int | float) or not 0 <= ends < _LAST_MOMENT:
        return None
    return datetime.fromtimestamp(ends, UTC)


def _needed(name: str, source: Connection | None) -> Failure:
    why = f"The subject has no connection at {name} with an id token that is still good."
    return Failure(
        ErrorCode.IDENTITY_NEEDED, why, identity_provider=name, source="none" if source is None else source.id
    )
