"""Rebuilds what Temporal should hold from what the store holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from evergrant_server.core.attempt import LIMITS, AttemptKind
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.grant import MAIN
from evergrant_server.core.ids import ConnectionId, Tenant, workflow_id
from evergrant_server.core.lifecycle import life_of
from evergrant_server.core.messages import Asked, ConnectionStart, Event, Happening
from evergrant_server.core.schedule import NEWEST_RULES
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store, Tx
from evergrant_server.temporal_link.link import TemporalLink

T = TypeVar("T")

_BY = Asked(by="reconcile")
_BATCH = 200
_AT_ONCE = 16  # starts, looks and questions under way; Temporal's frontend takes far more
_SILENT = 32  # questions in a row that nobody answers: no worker is there


@dataclass(frozen=True)
class Reconciled:
    """How far a pass is, and in the end what it did.

    `behind` names those whose workflow knows a newer generation than the store: the store was
    restored from a backup, and their refresh tokens may be spent. `busy` names those that were
    to be restarted and may be awaiting a provider's answer.
    """

    live: int = 0
    started: int = 0
    restarted: int = 0
    behind: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    compared: bool = True  # False: no worker answered, so nobody knows whether the store is behind
    after: str | None = None  # the last connection that was looked at

    def and_(self, one: "_Looked") -> "Reconciled":
        name = one.connection.id
        return replace(
            self,
            live=self.live + 1,
            started=self.started + one.started,
            restarted=self.restarted + one.restarted,
            behind=(*self.behind, name) if one.behind else self.behind,
            busy=(*self.busy, name) if one.busy else self.busy,
            after=name,
        )


@dataclass(frozen=True)
class _Looked:
    """What was found and done for one connection."""

    connection: Connection
    started: bool = False
    restarted: bool = False
    behind: bool = False
    busy: bool = False


class Reconciler:
    """Starts a workflow for every live connection that has none. Harmless to repeat."""

    def __init__(self, store: Store, link: TemporalLink, ring: KeyRing, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._ring = ring
        self._clock = clock

    async def all(
        self,
        *,
        compare: bool = True,
        older_than: timedelta | None = None,
        told: Callable[[Reconciled], None] | None = None,
        begin: Reconciled | None = None,
    ) -> Reconciled:
        """Go through the store in batches, on from `begin`; `told` hears of each batch.

        `compare` asks each workflow for its generation. `older_than` starts anew what has run
        for longer. Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        going = _Pass(self, await self._link.running_connections(), compare, older_than)
        done = begin or Reconciled()
        while True:
            async with self._store.read() as tx:
                batch = await tx.connections.live(done.after, _BATCH)
            for looked in await together(going.look_at(it) for it in batch):
                done = done.and_(looked)
            done = replace(done, compared=done.compared and going.answered)
            if told is not None and batch:
                told(done)
            if len(batch) < _BATCH:
                return done

    def now(self) -> datetime:
        return self._clock.now()

    async def revive(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        """Start the workflow of one connection; False when it is not to live any more."""
        async with self._store.read() as tx:
            connection = await tx.connections.get(tenant, connection_id)
        if connection is None or connection.state.final:
            return False
        return await self.started(connection)

    async def started(self, connection: Connection) -> bool:
        """Start its workflow unless it runs. Visibility may lag, so Temporal itself is asked."""
        if await self._link.running(workflow_id(connection.tenant, connection.id)):
            return False
        return await self._start_from_store(connection)

    async def restarted(self, connection: Connection) -> bool | None:
        """End its run and start another in one call; None while an answer may be on its way.

        The new run begins with what the store says. A refresh that is under way would go on
        without the run that asked for it; nothing would be sent twice, for its attempt is open,
        but nobody would hear what came of it at once: so it is left for the next pass.
        """
        async with self._store.read() as tx:
            for kind in AttemptKind:
                attempt = await tx.attempts.open_for(connection.tenant, connection.id, MAIN, kind)
                if attempt is not None and self._clock.now() < attempt.send_by + LIMITS.answer:
                    return None
        return await self._start_from_store(connection, instead=True)

    async def is_behind(self, connection: Connection) -> bool | None:
        """Ask the workflow; None when no worker answers: what can't be asked is not accused."""
        try:
            known = await self._link.describe(connection.tenant, connection.id)
        except Failure:
            return None
        if known.generation <= connection.generation:
            return False
        async with self._store.read() as tx:  # it may have been refreshed while we asked
            now = await tx.connections.get(connection.tenant, connection.id)
        return now is not None and known.generation > now.generation

    async def _start_from_store(self, connection: Connection, *, instead: bool = False) -> bool:
        async with self._store.read() as tx:  # after the look at Temporal: it may just have ended
            now = await tx.connections.get(connection.tenant, connection.id)
            if now is None or now.state.final:
                return False
            start = await self._start(tx, now)
        await self._link.start_connection(start, again=True, instead=instead)
        return True

    async def _start(self, tx: Tx, connection: Connection) -> ConnectionStart:
        tenant, now = connection.tenant, self._clock.now()
        integration = await tx.integrations.get(tenant, connection.integration_id)
        grant = await tx.grants.get(tenant, connection.id)
        consent = await tx.consents.received_for(tenant, connection.id)
        waiting = ()
        if consent is not None:
            waiting = (Happening(event=Event.CONSENT_GRANTED, asked=_BY, consent_id=consent.id),)
        idle_s = integration.refresh.refresh_token_idle_s if integration else None
        return ConnectionStart(
            tenant=tenant,
            connection_id=connection.id,
            integration_id=connection.integration_id,
            integration=connection.integration,
            provider=connection.provider,
            subject_hash=self._ring.subject_hash(tenant, connection.subject),
            rules=NEWEST_RULES,
            life=life_of(connection, grant, idle_s, now),
            asked=_BY,
            waiting=waiting,
        )


class _Pass:
    """One pass: what visibility said when it began, and whether any worker answers questions."""

    def __init__(
        self,
        reconciler: Reconciler,
        running: dict[str, datetime],
        compare: bool,
        older_than: timedelta | None,
    ) -> None:
        self._reconciler = reconciler
        self._running = running
        self._compare = compare
        self._before = None if older_than is None else reconciler.now() - older_than
        self._unanswered = 0

    @property
    def answered(self) -> bool:
        return self._unanswered < _SILENT

    async def look_at(self, connection: Connection) -> _Looked:
        began = self._running.get(workflow_id(connection.tenant, connection.id))
        if began is None and await self._reconciler.started(connection):
            return _Looked(connection, started=True)
        behind = self._compare and self.answered and await self._behind(connection)
        if behind or began is None or self._before is None or began >= self._before:
            return _Looked(connection, behind=behind)
        restarted = await self._reconciler.restarted(connection)
        return _Looked(connection, restarted=restarted is True, busy=restarted is None)

    async def _behind(self, connection: Connection) -> bool:
        behind = await self._reconciler.is_behind(connection)
        self._unanswered = self._unanswered + 1 if behind is None else 0
        return behind is True


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order, with a bounded number under way."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(it: Awaitable[T]) -> T:
        async with turn:
            return await it

    return await asyncio.gather(*(one(it) for it in work))
