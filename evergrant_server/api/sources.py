"""Whose token may be exchanged for a connection's own (RFC 8693): that of one which the app may lease.

The exchange is made in the name of the app that asked for it, and each one is judged anew by the
worker that makes it: here it is asked for, and workflows hear of what may have changed.
"""

from datetime import datetime

from evergrant_server.api.authentication import Caller
from evergrant_server.api.establishing import Establishing, refuse_scopes
from evergrant_server.api.guards import visible_connection
from evergrant_server.api.outgoing import signal
from evergrant_server.api.parts import Parts
from evergrant_server.core.access import Action, App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import SIGNAL_PROVIDER_CHANGED, Asked, ProviderChanged
from evergrant_server.core.outbox import OutboxMessage
from evergrant_server.policy import Verdict, above, may_exchange, scopes_of_source
from evergrant_server.store import Tx


async def require_source(tx: Tx, parts: Parts, caller: Caller, source_id: str) -> None:
    """Whoever may have its token, with all that it can do, may have it exchanged.

    Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED as a lease of it would, and
    INVALID_REQUEST for one whose requests are signed.
    """
    source = await visible_connection(tx, caller, source_id, Action.TOKEN)
    if not source.flow.bears:
        detail = "Its requests are signed: it has no token to exchange."
        raise Failure(Code.INVALID_REQUEST, detail, field="source")
    verdict, scopes = await _judged(tx, parts, caller, source)
    if not verdict.allowed:
        refuse_scopes(above(scopes, verdict.ceiling))


async def asked_again(
    tx: Tx, parts: Parts, caller: Caller, asked: Asked, connection: Connection
) -> Connection:
    """An app that asks for it again, and may lease the source, is whose name it is exchanged in.

    The asking of any other app changes nothing: it has no right that could be passed on.
    """
    ended = connection.state.final or connection.state is State.REVOKING
    if connection.source is None or connection.source_app == caller.app.id or ended:
        return connection
    source = await tx.connections.get(connection.tenant, connection.source)
    if source is None or not (await _judged(tx, parts, caller, source))[0].allowed:
        return connection
    mine = connection.asked_by(caller.app.id)
    after = await tx.connections.replace(mine, expected=connection.revision)
    who = {"source": source.id, "source_app": caller.app.id, "before": connection.source_app}
    await Establishing(parts, caller, asked).record(tx, AuditAction.SOURCE_APP_CHANGED, after.id, **who)
    await tx.outbox.add(_look_again(after, after.revision, asked, parts.clock.now()))
    return after


async def tell_waiting(tx: Tx, app: App, asked: Asked, now: datetime) -> None:
    """Have every connection that doesn't work, and for which tokens are exchanged in the app's name,
    try again: the app may have what it lacked."""
    for connection in await tx.connections.waiting_for(app.tenant, app.id):
        await tx.outbox.add(_look_again(connection, app.revision, asked, now))


def _look_again(connection: Connection, version: int, asked: Asked, now: datetime) -> OutboxMessage:
    return signal(connection, SIGNAL_PROVIDER_CHANGED, ProviderChanged(version=version, asked=asked), now)


async def _judged(
    tx: Tx, parts: Parts, caller: Caller, source: Connection
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict about an exchange, and all that the source's token can do."""
    grant = await tx.grants.get(source.tenant, source.id)
    scopes = scopes_of_source(source, grant, parts.registry.offline_scope(source.provider))
    return may_exchange(caller.permits, source, scopes), scopes
