"""The token that is exchanged for a connection's own (RFC 8693): another connection's, or a brought one."""

from activities.holdings import Holdings
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import State
from evergrant_server.core.consent import Consent
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import SIGNAL_ROTATE, Asked, Rotate
from evergrant_server.core.outbox import signal_to
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store, Tx

_LOOK_AGAIN_S = 3.0


async def subject_token_of(
    store: Store, clock: Clock, asked: Asked, held: Holdings, consent: Consent | None = None
) -> Secret | None:
    """None for a flow that exchanges nothing.

    Another connection's token that is over is asked to be made new by that connection's own
    workflow. Raises Failure REFRESH_PENDING meanwhile, CONSENT_REQUIRED without any token.
    """
    if held.connection.flow is not Flow.TOKEN_EXCHANGE:
        return None
    if held.connection.source is not None:
        return await _of_source(store, clock, asked, held.connection.tenant, held.connection.source)
    async with store.read() as tx:
        if consent is not None:
            return (await tx.consents.tokens(consent)).access_token
        token = await tx.grants.refresh_token(held.connection)
    if token is None:
        raise Failure(Code.CONSENT_REQUIRED, "there is no token to exchange")
    return token


async def _of_source(
    store: Store, clock: Clock, asked: Asked, tenant: Tenant, source: ConnectionId
) -> Secret:
    now = clock.now()
    async with store.read() as tx:
        connection = await tx.connections.get(tenant, source)
        grant = await tx.grants.get(tenant, source)
        works = connection is not None and connection.state is State.ACTIVE
        if connection is not None and works and grant is not None and grant.valid(now):
            return await tx.grants.access_token(connection)
    if works:
        async with store.write() as tx:
            await _ask_for_a_newer_one(tx, clock, asked, tenant, source)
    why = "the connection whose token is exchanged has none that is valid"
    raise Failure(Code.REFRESH_PENDING, why, retry_after=_LOOK_AGAIN_S)


async def _ask_for_a_newer_one(
    tx: Tx, clock: Clock, asked: Asked, tenant: Tenant, source: ConnectionId
) -> None:
    order = Rotate(reason="its token is to be exchanged", asked=asked)
    message = signal_to(tenant, source, SIGNAL_ROTATE, order, clock.now())
    await tx.outbox.add(message)
