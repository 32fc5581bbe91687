"""Source connections of token exchange (RFC 8693): which app may have their tokens exchanged.

A connection records the app in whose name its source is exchanged. The worker checks that app's
permits before each exchange; the API checks them here and signals workflows when they change.
"""

from datetime import datetime

from evergrant_server.api.connections.scopes import raise_scope_not_permitted
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import visible_connection
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.core.access import Action, App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext, SignalName
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.core.outbox import OutboxMessage
from evergrant_server.policy import PermitDecision, may_exchange, scopes_above, source_scopes
from evergrant_server.store import Transaction


async def require_source_permit(tx: Transaction, api: ApiContext, caller: Caller, source_id: str) -> None:
    """Check that the caller may lease the source with all its scopes.

    Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED as a lease would, and
    INVALID_REQUEST for a connection whose requests are signed.
    """
    source = await visible_connection(tx, caller, source_id, Action.TOKEN)
    if not source.flow.is_bearer:
        detail = "Its requests are signed: it has no bearer token to exchange."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="source")
    decision, scopes = await _exchange_decision(tx, api, caller, source)
    if not decision.allowed:
        raise_scope_not_permitted(scopes_above(scopes, decision.ceiling))


async def take_over_exchange(
    tx: Transaction,
    api: ApiContext,
    caller: Caller,
    context: RequestContext,
    connection: Connection,
) -> Connection:
    """Record the caller as the app in whose name the source is exchanged, if it may lease the source.

    For any other caller the connection stays as it is.
    """
    ended = connection.state.is_final or connection.state is LifecycleState.REVOKING
    if connection.source is None or connection.source_app == caller.app.id or ended:
        return connection
    source = await tx.connections.get(connection.tenant, connection.source)
    if source is None or not (await _exchange_decision(tx, api, caller, source))[0].allowed:
        return connection
    now = api.clock.now()
    taken_over = connection.with_source_app(caller.app.id)
    after = await tx.connections.replace(taken_over, expected=connection.revision)
    detail = {"source": source.id, "source_app": caller.app.id, "before": connection.source_app}
    action = AuditAction.SOURCE_APP_CHANGED
    await record(tx, after.tenant, action, after.id, context, now, **detail)
    await tx.outbox.add(_retry_message(after, after.revision, context, now))
    return after


async def retry_waiting_connections(
    tx: Transaction, app: App, context: RequestContext, now: datetime
) -> None:
    """Have every failing connection whose source is exchanged in the app's name try again."""
    for connection in await tx.connections.waiting_for_source_app(app.tenant, app.id):
        await tx.outbox.add(_retry_message(connection, app.revision, context, now))


def _retry_message(
    connection: Connection, version: int, context: RequestContext, now: datetime
) -> OutboxMessage:
    return connection_signal_message(
        connection, SignalName.PROVIDER_CHANGED, ProviderChanged(version=version, context=context), now
    )


async def _exchange_decision(
    tx: Transaction, api: ApiContext, caller: Caller, source: Connection
) -> tuple[PermitDecision, tuple[str, ...]]:
    """The decision about an exchange, and the scopes of the source's token."""
    grant = await tx.grants.get(source.tenant, source.id)
    scopes = source_scopes(source, grant, api.registry.offline_scope(source.provider))
    return may_exchange(caller.permits, source, scopes), scopes
