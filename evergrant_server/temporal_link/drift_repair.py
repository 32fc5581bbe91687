"""Finds out who is behind, store or workflow, and mends what can be mended without anybody."""

from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import connection_workflow_id
from evergrant_server.core.lifecycle.drift import Drift, find_drift
from evergrant_server.core.messages.connection import SIGNAL_REVOKE, Revoke
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.workflow_starter import (
    RECONCILE_CONTEXT,
    WorkflowStarter,
    newest_generation,
)

_SETTLE_TIME = timedelta(seconds=10)  # a workflow hears of a change within moments
_REVOCATION_LOST = "it was revoked before, and the store came from an older backup"


@dataclass(frozen=True)
class CheckedConnection:
    """What was found and done for one connection."""

    connection: Connection
    started: bool = False
    running: bool = False  # so it need not be started
    restarted: bool = False
    store_behind: bool = False  # the store is
    awaiting_provider: bool = False  # to be restarted, when its provider can't answer any more
    answered: bool = True  # False: it was to be asked, and nobody answered
    reply_later: tuple[str, ...] = ()  # what its workflow said: these are to hear from it


class DriftRepair:
    """One connection at a time."""

    def __init__(self, store: Store, link: TemporalLink, lives: WorkflowStarter, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._lives = lives
        self._clock = clock

    async def start_if_closed(self, connection: Connection) -> CheckedConnection:
        """Start its workflow unless it runs, says Temporal itself: its list of runs lags.

        A run that was ended by hand still tells what it knew.
        """
        name = connection_workflow_id(connection.tenant, connection.id)
        last = await self._link.newest_run(name)
        if last is None:
            return CheckedConnection(connection, started=await self._lives.start(connection))
        if last.running:
            return CheckedConnection(connection, running=True)
        if last.state in (LifecycleState.REVOKING, LifecycleState.REVOKED):
            await self._restore_revocation(connection)
        known = newest_generation(await self._link.history(name, last.run_id))
        started = await self._lives.start(connection, known=known)
        return CheckedConnection(
            connection, started=started, store_behind=started and known > connection.generation
        )

    async def compare(self, connection: Connection) -> CheckedConnection:
        """Ask its workflow what it knows, and mend. What can't be asked is not accused.

        One that turns out to have ended is started, though the list of runs still has it.
        """
        try:
            known = await self._link.describe(connection.tenant, connection.id)
            now = await self._current(connection)  # it may have been refreshed while we asked
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
                raise
            return CheckedConnection(connection, answered=False)
        if now is None or now.state.is_final:
            return CheckedConnection(connection)
        if known is None:
            return await self.start_if_closed(now)
        match find_drift(now, known):
            case Drift.STORE_BEHIND:
                return CheckedConnection(now, store_behind=True)
            case Drift.STORE_LOST_REVOCATION:
                await self._restore_revocation(now)
                return CheckedConnection(now, store_behind=True)
            case Drift.WORKFLOW_MISSED_REVOCATION if await self._is_settled(now):
                await self._resend_revoke(now)
            case Drift.WORKFLOW_BEHIND if await self._is_settled(now):
                later = known.reply_later
                return CheckedConnection(
                    now, restarted=await self._lives.start(now, instead=True, reply_later=later)
                )
            case _:
                pass
        return CheckedConnection(now, reply_later=known.reply_later)

    async def restart(self, connection: Connection) -> CheckedConnection:
        """End its run and start another in one call, which begins with what the store says.

        Not while a provider may still answer: nothing would be sent twice, for the attempt is
        open, but the new run would have to wait to hear what came of it.
        """
        found = await self.compare(connection)
        if found.started or found.store_behind or found.restarted or found.connection.state.is_final:
            return found
        if await self._lives.has_attempt_under_way(connection):
            return CheckedConnection(connection, awaiting_provider=True)
        known = 0
        if not found.answered:  # its worker is gone; its history isn't
            known = newest_generation(
                await self._link.history(connection_workflow_id(connection.tenant, connection.id))
            )
        later = found.reply_later
        restarted = await self._lives.start(connection, known=known, instead=True, reply_later=later)
        return CheckedConnection(
            connection, restarted=restarted, store_behind=restarted and known > connection.generation
        )

    async def _is_settled(self, connection: Connection) -> bool:
        """False while the workflow may just be about to hear of it."""
        name = connection_workflow_id(connection.tenant, connection.id)
        if self._clock.now() - connection.changed_at < _SETTLE_TIME or not await self._link.is_idle(name):
            return False
        async with self._store.read() as tx:
            waiting = await tx.outbox.targets_with_undelivered([name])
            now = await tx.connections.get(connection.tenant, connection.id)
        return not waiting and now is not None and now.revision == connection.revision

    async def _resend_revoke(self, connection: Connection) -> None:
        """Repeat the message; a workflow that heard it meanwhile takes no notice."""
        order = Revoke(reason=connection.revoke_reason or "", context=RECONCILE_CONTEXT)
        name = connection_workflow_id(connection.tenant, connection.id)
        await self._link.signal(name, SIGNAL_REVOKE, order.model_dump(mode="json"))

    async def _restore_revocation(self, connection: Connection) -> None:
        """Revoked means revoked, whatever backup the store came from: from here on no lease leaves."""
        async with self._store.write() as tx:
            current = await tx.connections.get(connection.tenant, connection.id)
            if current is None or current.state.is_final or current.state is LifecycleState.REVOKING:
                return
            now = self._clock.now()
            asked = current.revocation_requested(_REVOCATION_LOST, now)
            await tx.connections.replace(asked, expected=current.revision)
            entry = AuditEntry(
                tenant=asked.tenant,
                at=now,
                action=AuditAction.REVOCATION_REQUESTED,
                object=asked.id,
                context=RECONCILE_CONTEXT,
                detail={"reason": _REVOCATION_LOST},
            )
            await audit.append(tx, entry)

    async def _current(self, connection: Connection) -> Connection | None:
        async with self._store.read() as tx:
            return await tx.connections.get(connection.tenant, connection.id)
