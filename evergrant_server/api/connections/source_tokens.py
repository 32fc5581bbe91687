"""Whose token may be exchanged for a connection's own (RFC 8693): that of one which the app may lease.

The exchange is made in the name of the app that asked for it, and each one is judged anew by the
worker that makes it: here it is asked for, and workflows hear of what may have changed.
"""

from datetime import datetime

from evergrant_server.api.connections.create import ConnectionSetup, raise_scope_not_permitted
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import visible_connection
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.core.access import Action, App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import OutboxMessage
from evergrant_server.policy import PermitDecision, may_exchange, scopes_above, source_scopes
from evergrant_server.store import Transaction


async def require_source_permit(tx: Transaction, parts: ApiContext, caller: Caller, source_id: str) -> None:
    """Whoever may have its token, with all that it can do, may have it exchanged.

    Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED as a lease of it would, and
    INVALID_REQUEST for one whose requests are signed.
    """
    source = await visible_connection(tx, caller, source_id, Action.TOKEN)
    if not source.flow.is_bearer:
        detail = "Its requests are signed: it has no token to exchange."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="source")
    verdict, scopes = await _source_verdict(tx, parts, caller, source)
    if not verdict.allowed:
        raise_scope_not_permitted(scopes_above(scopes, verdict.ceiling))


async def take_over_exchange(
    tx: Transaction, parts: ApiContext, caller: Caller, asked: RequestContext, connection: Connection
) -> Connection:
    """An app that asks for it again, and may lease the source, is whose name it is exchanged in.

    The asking of any other app changes nothing: it has no right that could be passed on.
    """
    ended = connection.state.is_final or connection.state is LifecycleState.REVOKING
    if connection.source is None or connection.source_app == caller.app.id or ended:
        return connection
    source = await tx.connections.get(connection.tenant, connection.source)
    if source is None or not (await _source_verdict(tx, parts, caller, source))[0].allowed:
        return connection
    mine = connection.with_source_app(caller.app.id)
    after = await tx.connections.replace(mine, expected=connection.revision)
    who = {"source": source.id, "source_app": caller.app.id, "before": connection.source_app}
    await ConnectionSetup(parts, caller, asked).record(tx, AuditAction.SOURCE_APP_CHANGED, after.id, **who)
    await tx.outbox.add(_retry_message(after, after.revision, asked, parts.clock.now()))
    return after


async def retry_waiting_connections(tx: Transaction, app: App, asked: RequestContext, now: datetime) -> None:
    """Have every connection that doesn't work, and for which tokens are exchanged in the app's name,
    try again: the app may have what it lacked."""
    for connection in await tx.connections.waiting_for_source_app(app.tenant, app.id):
        await tx.outbox.add(_retry_message(connection, app.revision, asked, now))


def _retry_message(
    connection: Connection, version: int, asked: RequestContext, now: datetime
) -> OutboxMessage:
    return connection_signal_message(
        connection, SignalName.PROVIDER_CHANGED, ProviderChanged(version=version, context=asked), now
    )


async def _source_verdict(
    tx: Transaction, parts: ApiContext, caller: Caller, source: Connection
) -> tuple[PermitDecision, tuple[str, ...]]:
    """The verdict about an exchange, and all that the source's token can do."""
    grant = await tx.grants.get(source.tenant, source.id)
    scopes = source_scopes(source, grant, parts.registry.offline_scope(source.provider))
    return may_exchange(caller.permits, source, scopes), scopes
