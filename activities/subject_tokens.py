"""The token that is exchanged for a connection's own (RFC 8693): another connection's, or a brought one."""

from activities.clocks import earlier_hour
from activities.holdings import Holder, Holdings
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import Consent
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import SIGNAL_ROTATE, Asked, Rotate
from evergrant_server.core.outbox import signal_to
from evergrant_server.core.secret import Secret
from evergrant_server.policy import may_exchange, scopes_of_source
from evergrant_server.store import Store, Tx

_LOOK_AGAIN_S = 3.0


async def subject_token_of(
    store: Store, holder: Holder, clock: Clock, asked: Asked, held: Holdings, consent: Consent | None = None
) -> Secret | None:
    """None for a flow that exchanges nothing.

    Another connection's token that is over is asked to be made new by that connection's own
    workflow. Raises Failure REFRESH_PENDING meanwhile, CONSENT_REQUIRED without any token, and
    SOURCE_NOT_PERMITTED while the app in whose name it is exchanged may not lease that connection.
    """
    if held.connection.flow is not Flow.TOKEN_EXCHANGE:
        return None
    if held.connection.source is not None:
        return await _of_source(store, holder, clock, asked, held.connection, held.connection.source)
    async with store.read() as tx:
        if consent is not None:
            return (await tx.consents.tokens(consent)).access_token
        token = await tx.grants.refresh_token(held.connection)
    if token is None:
        raise Failure(Code.CONSENT_REQUIRED, "there is no token to exchange")
    return token


async def _of_source(
    store: Store, holder: Holder, clock: Clock, asked: Asked, mine: Connection, source_id: ConnectionId
) -> Secret:
    now = earlier_hour(clock)
    async with store.read() as tx:
        source = await tx.connections.get(mine.tenant, source_id)
        grant = await tx.grants.get(mine.tenant, source_id)
        if source is not None:  # of one moment with its token: nothing is widened in between
            await _require_permit(tx, mine, source, grant, holder.offline_scope(source.provider))
        works = source is not None and source.state is State.ACTIVE
        if source is not None and works and grant is not None and grant.valid(now):
            return await tx.grants.access_token(source)
    if source is not None and works:
        async with store.write() as tx:
            await _ask_for_a_newer_one(tx, clock, asked, source)
    why = "the connection whose token is exchanged has none that is valid"
    raise Failure(Code.REFRESH_PENDING, why, retry_after=_LOOK_AGAIN_S)


async def _require_permit(
    tx: Tx, mine: Connection, source: Connection, grant: Grant | None, offline: str | None
) -> None:
    """An exchange is made in the name of an app, and lives as long as that app may lease the source.

    Raises Failure SOURCE_NOT_PERMITTED.
    """
    app = None if mine.source_app is None else await tx.access.app(mine.tenant, mine.source_app)
    permits = [] if app is None or app.disabled else await tx.access.permits(app.tenant, app.id)
    if not may_exchange(permits, source, scopes_of_source(source, grant, offline)).allowed:
        in_whose_name = mine.source_app or "nobody"  # a connection of before that was kept
        raise Failure(Code.SOURCE_NOT_PERMITTED, source=source.id, source_app=in_whose_name)


async def _ask_for_a_newer_one(tx: Tx, clock: Clock, asked: Asked, source: Connection) -> None:
    """Newer than the one that was read: all whose tokens are made of it ask at about the same time."""
    why = "its token is to be exchanged"
    order = Rotate(reason=why, asked=asked, seen_generation=source.generation)
    await tx.outbox.add(signal_to(source.tenant, source.id, SIGNAL_ROTATE, order, clock.now()))
