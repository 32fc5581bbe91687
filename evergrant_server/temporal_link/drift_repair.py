"""Compares a connection's row with its workflow, repairs what needs no person, and starts a workflow
that is missing."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.snapshot import Drift, find_drift
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.names import SignalName, connection_workflow_id
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.workflow_starter import (
    RECONCILE_CONTEXT,
    WorkflowStarter,
    reconcile_context,
)

_SETTLE_TIME = timedelta(seconds=10)  # more than a message takes from the store to the workflow
_REVOCATION_LOST = "it was revoked before, and the store came from an older backup"


@dataclass(frozen=True)
class CheckedConnection:
    """What a check found and did for one connection."""

    connection: Connection
    started: bool = False
    running: bool = False
    restarted: bool = False
    store_behind: bool = False
    awaiting_provider: bool = False  # not restarted, because the provider may still answer
    answered: bool = True  # False: its workflow didn't answer the query
    unreadable: str | None = None  # why a row of it can't be read, so that it was skipped
    pending_replies: tuple[str, ...] = ()  # workflows that its workflow owes a `token_ready`


class DriftRepair:
    """Checks and repairs one connection at a time."""

    def __init__(self, store: Store, link: TemporalLink, starter: WorkflowStarter, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._starter = starter
        self._clock = clock

    async def start_if_closed(self, connection: Connection) -> CheckedConnection:
        """Start the workflow unless it is running. Asks Temporal itself, because visibility lags.

        The new run keeps what the history of the last one knew: a revocation, a generation. A foreign run
        and one that is stuck are terminated first: they would keep the connection without a workflow.
        """
        name = connection_workflow_id(connection.tenant, connection.id)
        last = await self._link.usable_run(name)
        if last is None or last.is_foreign:
            return CheckedConnection(connection, started=await self._starter.start(connection))
        if last.running:
            return CheckedConnection(connection, running=True)
        if last.state in (LifecycleState.REVOKING, LifecycleState.REVOKED):
            await self._restore_revocation(connection)
        known = await self._link.newest_generation(name, last.run_id)
        started = await self._starter.start(connection, known_generation=known or 0)
        return CheckedConnection(
            connection, started=started, store_behind=started and _is_behind(connection, known)
        )

    async def compare(self, connection: Connection) -> CheckedConnection:
        """Query the workflow and repair a drift. One that doesn't answer is left alone.

        A workflow that has closed, although visibility lists it as running, is started.
        """
        try:
            known = await self._link.describe(connection.tenant, connection.id)
            current = await self._current(connection)  # a refresh may have ended since the query
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
                raise
            return CheckedConnection(connection, answered=False)
        if current is None or current.state.is_final:
            return CheckedConnection(connection)
        if known is None:
            return await self.start_if_closed(current)
        match find_drift(current, known):
            case Drift.STORE_BEHIND:
                return CheckedConnection(current, store_behind=True)
            case Drift.STORE_LOST_REVOCATION:
                await self._restore_revocation(current)
                return CheckedConnection(current, store_behind=True)
            case Drift.WORKFLOW_MISSED_REVOCATION if await self._is_settled(current):
                await self._resend_revoke(current)
            case Drift.WORKFLOW_BEHIND if await self._is_settled(current):
                restarted = await self._starter.start(
                    current, replace_running=True, pending_replies=known.waiting_callers
                )
                return CheckedConnection(current, restarted=restarted)
            case _:
                pass
        return CheckedConnection(current, pending_replies=known.waiting_callers)

    async def restart(self, connection: Connection) -> CheckedConnection:
        """Terminate the run and start another from the store, in one call.

        Not while the provider may still answer an open attempt. Nothing would be sent twice, but
        the new run would have to wait for the outcome.
        """
        checked = await self.compare(connection)
        if checked.started or checked.store_behind or checked.restarted or checked.connection.state.is_final:
            return checked
        if await self._starter.has_attempt_under_way(connection):
            return CheckedConnection(connection, awaiting_provider=True)
        known: int | None = 0
        if not checked.answered:  # without a worker, only the history tells the generation
            name = connection_workflow_id(connection.tenant, connection.id)
            known = await self._link.newest_generation(name)
        restarted = await self._starter.start(
            connection,
            known_generation=known or 0,
            replace_running=True,
            pending_replies=checked.pending_replies,
        )
        behind = restarted and _is_behind(connection, known)
        return CheckedConnection(connection, restarted=restarted, store_behind=behind)

    async def _is_settled(self, connection: Connection) -> bool:
        """False while a message about the last change may still be on its way to the workflow."""
        name = connection_workflow_id(connection.tenant, connection.id)
        if self._clock.now() - connection.changed_at < _SETTLE_TIME or not await self._link.is_idle(name):
            return False
        async with self._store.read() as tx:
            undelivered = await tx.outbox.targets_with_undelivered([name])
            current = await tx.connections.get(connection.tenant, connection.id)
            if await tx.incident_items.waits(connection.tenant, connection.id):
                return False  # an incident tells it in its turn
        return not undelivered and current is not None and current.revision == connection.revision

    async def _resend_revoke(self, connection: Connection) -> None:
        """Send the signal again; a workflow that received it meanwhile ignores this one."""
        name = connection_workflow_id(connection.tenant, connection.id)
        context = reconcile_context(self._store.ring, name, self._clock.now(), SignalName.REVOKE)
        revoke = Revoke(reason=connection.revoke_reason or "", context=context)
        await self._link.signal(name, SignalName.REVOKE, revoke.model_dump(mode="json"))

    async def _restore_revocation(self, connection: Connection) -> None:
        """Write a revocation that the store lost with a restored backup: from here on no lease leaves."""
        async with self._store.write() as tx:
            current = await tx.connections.get(connection.tenant, connection.id)
            if current is None or current.state.is_final or current.state is LifecycleState.REVOKING:
                return
            now = self._clock.now()
            revoking = current.revocation_requested(_REVOCATION_LOST, now)
            await tx.connections.replace(revoking, expected=current.revision)
            entry = AuditEntry(
                tenant=revoking.tenant,
                at=now,
                action=AuditAction.REVOCATION_REQUESTED,
                object=revoking.id,
                context=RECONCILE_CONTEXT,
                detail={"reason": _REVOCATION_LOST},
            )
            await audit.append(tx, entry)

    async def _current(self, connection: Connection) -> Connection | None:
        async with self._store.read() as tx:
            return await tx.connections.get(connection.tenant, connection.id)


def _is_behind(connection: Connection, known: int | None) -> bool:
    """True when the history knows more than the store, or has a key that the store lacks: this came from an
    older backup, or was changed by hand."""
    return known is None or known > connection.generation


async def unless_unreadable(connection: Connection, check: Awaitable[CheckedConnection]) -> CheckedConnection:
    """Await the check; a row of the grant, say, that can't be read skips this connection alone."""
    try:
        return await check
    except Failure as failure:
        if failure.code is not ErrorCode.INTERNAL:
            raise
        return CheckedConnection(connection, unreadable=failure.detail)
