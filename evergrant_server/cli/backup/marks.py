"""Marks of a restored database: connections whose refresh token may be spent, and those that had ended.

The workflows know both, and `reconcile` asks them. The marks say it without Temporal, which may be lost too:
a connection that was refreshed since the backup isn't refreshed with the backup's token, and one that was
revoked since isn't leased.
"""

from dataclasses import dataclass

from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.copies import Copy, MovedOn, Ref, moved_on
from providers.definition.registry import Registry

_OPERATOR = RequestContext(by="operator")
_ENDED = "it had ended before the database was replaced by a backup"


@dataclass
class Marks:
    """How many connections were marked. `left`: refreshed since, and marked by nothing: their provider keeps
    its refresh tokens, or they had no grant to refresh."""

    reconnect: int = 0
    revoking: int = 0
    left: int = 0


async def mark(store: Store, registry: Registry, clock: Clock, older: Copy, newer: Copy) -> Marks:
    """Mark the live connections of `store`, of which `older` is a snapshot. A second run marks none.

    Raises Failure STORE_CONFLICT where another process writes meanwhile.
    """
    marks = Marks()
    async for moved in moved_on(older, newer):
        if moved.refreshed or moved.ended:
            await _mark_page(store, registry, clock, moved, marks)
    return marks


async def _mark_page(store: Store, registry: Registry, clock: Clock, moved: MovedOn, marks: Marks) -> None:
    for ref in moved.refreshed:
        async with store.write() as tx:
            connection = await _connection(tx, ref)
            is_spent = await _is_spent(tx, registry, connection)
            if not is_spent:
                marks.left += 1
                continue
            now, reason = clock.now(), ErrorCode.OUTCOME_UNKNOWN
            await tx.connections.replace(connection.rejected(reason, now), expected=connection.revision)
            facts = {"reason": reason, "restored": True}
            await record(tx, ref.tenant, AuditAction.NEEDS_REAUTH, ref.id, _OPERATOR, now, **facts)
            marks.reconnect += 1
    for ref in moved.ended:
        async with store.write() as tx:
            connection = await _connection(tx, ref)
            if connection.has_ended:
                continue
            now = clock.now()
            revoking = connection.revocation_requested(_ENDED, now)
            await tx.connections.replace(revoking, expected=connection.revision)
            action = AuditAction.REVOCATION_REQUESTED
            await record(tx, ref.tenant, action, ref.id, _OPERATOR, now, reason=_ENDED)
            marks.revoking += 1


async def _connection(tx: Transaction, ref: Ref) -> Connection:
    connection = await tx.connections.get(ref.tenant, ref.id)
    if connection is None:
        raise Failure(ErrorCode.STORE_CONFLICT, f"{ref.id} was deleted meanwhile.")
    return connection


async def _is_spent(tx: Transaction, registry: Registry, connection: Connection) -> bool:
    """Whether the refresh token may have been replaced: unless its provider is known to rotate none."""
    if connection.state is not LifecycleState.ACTIVE:
        return False
    integration = await tx.integrations.get_unchecked(connection.tenant, connection.integration_id)
    if integration is None:
        return True
    try:
        versions = await tx.definitions.serving(connection.tenant, integration.provider)
        rules = registry.refresh_rules(integration.provider, versions, connection.id)
    except Failure:
        return integration.refresh.rotation is not Rotation.NONE
    return integration.with_provider_rules(rules).refresh.rotation is not Rotation.NONE
