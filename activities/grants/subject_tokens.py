"""The token that is exchanged for a connection's own (RFC 8693): another connection's, or a brought one."""

from activities.support.clocks import earlier_now
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.connection import SIGNAL_ROTATE, RequestContext, Rotate
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.secret import Secret
from evergrant_server.policy import may_exchange, source_scopes
from evergrant_server.store import Store, Transaction

_RETRY_AFTER_S = 3.0


async def load_subject_token(
    store: Store,
    holder: ProviderContextLoader,
    clock: Clock,
    asked: RequestContext,
    held: ProviderContext,
    consent: Consent | None = None,
) -> Secret | None:
    """None for a flow that exchanges nothing.

    Another connection's token that is over is asked to be made new by that connection's own
    workflow. Raises Failure REFRESH_PENDING meanwhile, CONSENT_REQUIRED without any token, and
    SOURCE_NOT_PERMITTED while the app in whose name it is exchanged may not lease that connection.
    """
    if held.connection.flow is not Flow.TOKEN_EXCHANGE:
        return None
    if held.connection.source is not None:
        return await _load_source_token(store, holder, clock, asked, held.connection, held.connection.source)
    async with store.read() as tx:
        if consent is not None:
            return (await tx.consents.imported_tokens(consent)).access_token
        token = await tx.grants.refresh_token(held.connection)
    if token is None:
        raise Failure(ErrorCode.CONSENT_REQUIRED, "there is no token to exchange")
    return token


async def _load_source_token(
    store: Store,
    holder: ProviderContextLoader,
    clock: Clock,
    asked: RequestContext,
    mine: Connection,
    source_id: ConnectionId,
) -> Secret:
    now = earlier_now(clock)
    async with store.read() as tx:
        source = await tx.connections.get(mine.tenant, source_id)
        grant = await tx.grants.get(mine.tenant, source_id)
        if source is not None:  # of one moment with its token: nothing is widened in between
            await _require_source_permit(tx, mine, source, grant, holder.offline_scope(source.provider))
        works = source is not None and source.state is LifecycleState.ACTIVE
        if source is not None and works and grant is not None and grant.is_valid(now):
            return await tx.grants.access_token(source)
    if source is not None and works:
        async with store.write() as tx:
            await _request_source_refresh(tx, clock, asked, source)
    why = "the connection whose token is exchanged has none that is valid"
    raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=_RETRY_AFTER_S)


async def _require_source_permit(
    tx: Transaction, mine: Connection, source: Connection, grant: Grant | None, offline: str | None
) -> None:
    """An exchange is made in the name of an app, and lives as long as that app may lease the source.

    Raises Failure SOURCE_NOT_PERMITTED.
    """
    app = None if mine.source_app is None else await tx.access.app(mine.tenant, mine.source_app)
    permits = [] if app is None or app.disabled else await tx.access.permits(app.tenant, app.id)
    if not may_exchange(permits, source, source_scopes(source, grant, offline)).allowed:
        in_whose_name = mine.source_app or "nobody"  # a connection of before that was kept
        raise Failure(ErrorCode.SOURCE_NOT_PERMITTED, source=source.id, source_app=in_whose_name)


async def _request_source_refresh(
    tx: Transaction, clock: Clock, asked: RequestContext, source: Connection
) -> None:
    """Newer than the one that was read: all whose tokens are made of it ask at about the same time."""
    why = "its token is to be exchanged"
    order = Rotate(reason=why, context=asked, seen_generation=source.generation)
    await tx.outbox.add(signal_message(source.tenant, source.id, SIGNAL_ROTATE, order, clock.now()))
