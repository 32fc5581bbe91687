"""Client grants: tokens for the integration's own credentials, or for a subject token that is exchanged.

RFC 6749 section 4.4, RFC 7523 and RFC 8693. The subject token is another connection's, or an imported one.
"""

from datetime import datetime

from activities.grants import GrantServices
from activities.grants.token_request import NO_CREDENTIAL_SPENT, PreparedTokenRequest
from activities.support.provider_context import ProviderContext
from activities.support.temporal import earlier_now
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import Grant, TokenSet
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
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

_RETRY_AFTER_S = 3.0


async def client_grant_token_request(
    services: GrantServices, by: RequestContext, context: ProviderContext, consent: Consent | None = None
) -> PreparedTokenRequest:
    """The request for a first token of `consent`, or for the next one. It is sent again after a lost reply.

    For an expired token of another connection, that connection's workflow is signalled to refresh
    it. Raises Failure REFRESH_PENDING meanwhile, CONSENT_REQUIRED without any token to exchange,
    and SOURCE_NOT_PERMITTED while the app of the exchange may not lease that connection.
    """
    connection = context.connection
    subject_token = None
    if connection.flow is Flow.TOKEN_EXCHANGE:
        subject_token = await _load_subject_token(services, by, connection, consent)
    grant_input = ClientGrantInput(
        scopes=connection.requested_scopes if consent is None else consent.scopes,
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
    if context.connection.flow is Flow.TOKEN_EXCHANGE:
        tokens = read_exchanged_token(context.spec, reply, requested_scopes=scopes, now=came_at)
    else:
        tokens = read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"refresh_token": None, "refresh_expires_in": None})


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
            offline_scope = services.contexts.offline_scope(source.provider)
            await _require_source_permit(tx, connection, source, grant, offline_scope, now)
        active = source is not None and source.state is LifecycleState.ACTIVE
        if source is not None and active and grant is not None and grant.is_valid(now):
            return await tx.grants.access_token(source)
    if source is not None and active:
        # with the generation that was read: other connections of this source signal at the same time
        reason = "its token is to be exchanged"
        rotate = Rotate(reason=reason, context=by, seen_generation=source.generation)
        message = signal_message(source.tenant, source.id, SignalName.ROTATE, rotate, services.clock.now())
        async with services.store.write() as tx:
            await tx.outbox.add(message)
    why = "the connection whose token is exchanged has none that is valid"
    raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=_RETRY_AFTER_S)


async def _require_source_permit(
    tx: Transaction,
    connection: Connection,
    source: Connection,
    grant: Grant | None,
    offline: str | None,
    now: datetime,
) -> None:
    """Raises Failure SOURCE_NOT_PERMITTED unless the app of the exchange may lease the source."""
    app_id = connection.source_app
    app = None if app_id is None else await tx.access.app(connection.tenant, app_id)
    ended = app is None or app.disabled or app.is_over(now)
    permits = [] if app is None or ended else await tx.access.permits(app.tenant, app.id)
    if not may_exchange(permits, source, source_scopes(source, grant, offline), now).allowed:
        raise Failure(ErrorCode.SOURCE_NOT_PERMITTED, source=source.id, source_app=app_id or "none")
