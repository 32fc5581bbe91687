"""Finds out who is behind, store or workflow, and mends what can be mended without anybody."""

from dataclasses import dataclass
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.drift import Drift, drift
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import workflow_id
from evergrant_server.core.messages import SIGNAL_REVOKE, Revoke
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.lives import BY, Lives, generation_in

_SETTLED = timedelta(seconds=10)  # a workflow hears of a change within moments
_FORGOTTEN = "it was revoked before, and the store came from an older backup"


@dataclass(frozen=True)
class Found:
    """What was found and done for one connection."""

    connection: Connection
    started: bool = False
    running: bool = False  # so it need not be started
    restarted: bool = False
    behind: bool = False  # the store is
    busy: bool = False  # to be restarted, when its provider can't answer any more
    answered: bool = True  # False: it was to be asked, and nobody answered
    reply_later: tuple[str, ...] = ()  # what its workflow said: these are to hear from it


class Drifts:
    """One connection at a time."""

    def __init__(self, store: Store, link: TemporalLink, lives: Lives, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._lives = lives
        self._clock = clock

    async def revived(self, connection: Connection) -> Found:
        """Start its workflow unless it runs, says Temporal itself: its list of runs lags.

        A run that was ended by hand still tells what it knew.
        """
        name = workflow_id(connection.tenant, connection.id)
        last = await self._link.newest_run(name)
        if last is None:
            return Found(connection, started=await self._lives.begin(connection))
        if last.running:
            return Found(connection, running=True)
        if last.state in (State.REVOKING, State.REVOKED):
            await self._remember_revocation(connection)
        known = generation_in(await self._link.history(name, last.run_id))
        started = await self._lives.begin(connection, known=known)
        return Found(connection, started=started, behind=started and known > connection.generation)

    async def compared(self, connection: Connection) -> Found:
        """Ask its workflow what it knows, and mend. What can't be asked is not accused.

        One that turns out to have ended is started, though the list of runs still has it.
        """
        try:
            known = await self._link.describe(connection.tenant, connection.id)
            now = await self._now(connection)  # it may have been refreshed while we asked
        except Failure as failure:
            if failure.code is not Code.TEMPORAL_UNAVAILABLE:
                raise
            return Found(connection, answered=False)
        if now is None or now.state.final:
            return Found(connection)
        if known is None:
            return await self.revived(now)
        match drift(now, known):
            case Drift.STORE_BEHIND:
                return Found(now, behind=True)
            case Drift.STORE_FORGOT_REVOCATION:
                await self._remember_revocation(now)
                return Found(now, behind=True)
            case Drift.REVOCATION_UNTOLD if await self._settled(now):
                await self._tell_revocation(now)
            case Drift.WORKFLOW_BEHIND if await self._settled(now):
                later = known.reply_later
                return Found(now, restarted=await self._lives.begin(now, instead=True, reply_later=later))
            case _:
                pass
        return Found(now, reply_later=known.reply_later)

    async def renewed(self, connection: Connection) -> Found:
        """End its run and start another in one call, which begins with what the store says.

        Not while a provider may still answer: nothing would be sent twice, for the attempt is
        open, but the new run would have to wait to hear what came of it.
        """
        found = await self.compared(connection)
        if found.started or found.behind or found.restarted or found.connection.state.final:
            return found
        if await self._lives.may_be_answered(connection):
            return Found(connection, busy=True)
        known = 0
        if not found.answered:  # its worker is gone; its history isn't
            known = generation_in(await self._link.history(workflow_id(connection.tenant, connection.id)))
        later = found.reply_later
        restarted = await self._lives.begin(connection, known=known, instead=True, reply_later=later)
        return Found(connection, restarted=restarted, behind=restarted and known > connection.generation)

    async def _settled(self, connection: Connection) -> bool:
        """False while the workflow may just be about to hear of it."""
        name = workflow_id(connection.tenant, connection.id)
        if self._clock.now() - connection.changed_at < _SETTLED or not await self._link.idle(name):
            return False
        async with self._store.read() as tx:
            waiting = await tx.outbox.waiting_among([name])
            now = await tx.connections.get(connection.tenant, connection.id)
        return not waiting and now is not None and now.revision == connection.revision

    async def _tell_revocation(self, connection: Connection) -> None:
        """Repeat the message; a workflow that heard it meanwhile takes no notice."""
        order = Revoke(reason=connection.revoke_reason or "", asked=BY)
        name = workflow_id(connection.tenant, connection.id)
        await self._link.signal(name, SIGNAL_REVOKE, order.model_dump(mode="json"))

    async def _remember_revocation(self, connection: Connection) -> None:
        """Revoked means revoked, whatever backup the store came from: from here on no lease leaves."""
        async with self._store.write() as tx:
            current = await tx.connections.get(connection.tenant, connection.id)
            if current is None or current.state.final or current.state is State.REVOKING:
                return
            now = self._clock.now()
            asked = current.revoke_asked(_FORGOTTEN, now)
            await tx.connections.replace(asked, expected=current.revision)
            entry = AuditEntry(
                tenant=asked.tenant,
                at=now,
                action=AuditAction.REVOKE_ASKED,
                object=asked.id,
                asked=BY,
                detail={"reason": _FORGOTTEN},
            )
            await audit.append(tx, entry)

    async def _now(self, connection: Connection) -> Connection | None:
        async with self._store.read() as tx:
            return await tx.connections.get(connection.tenant, connection.id)
