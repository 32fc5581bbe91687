"""Rebuilds what Temporal should hold from what the store holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection
from evergrant_server.core.ids import ConnectionId, Tenant, workflow_id
from evergrant_server.store import Store
from evergrant_server.temporal_link.drifts import Drifts, Found
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.lives import Lives
from evergrant_server.temporal_link.onboardings import restart_onboardings
from evergrant_server.temporal_link.overdue import wake_overdue
from evergrant_server.temporal_link.runs import Running

T = TypeVar("T")

_BATCH = 200
_AT_ONCE = 16  # starts, looks and questions under way; Temporal's frontend takes far more
_AT_ONCE_AGAIN = 4  # of those that weren't answered in time: their worker may be a slow one
_SILENT = 32  # questions in a row that nobody answers: no worker is there


@dataclass(frozen=True)
class Reconciled:
    """How far a pass is, and in the end what it did.

    `behind` names those whose workflow knows a newer generation than the store: the store was
    restored from a backup, and their refresh tokens may be spent. `busy` names those that were
    to be restarted and may be awaiting a provider's answer. `unanswered` names those that were
    asked and didn't answer, the second time either: whether the store is behind them is open.
    """

    live: int = 0
    started: int = 0
    restarted: int = 0
    behind: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    compared: bool = True  # False: no worker answered, so nobody knows whether the store is behind
    after: str | None = None  # the last connection that was looked at
    ended: bool = False  # there is none after it

    def and_(self, found: Found) -> "Reconciled":
        name = found.connection.id
        return replace(
            self,
            live=self.live + 1,
            started=self.started + found.started,
            restarted=self.restarted + found.restarted,
            behind=(*self.behind, name) if found.behind else self.behind,
            busy=(*self.busy, name) if found.busy else self.busy,
            unanswered=self.unanswered if found.answered else (*self.unanswered, name),
        )


class Revival(StrEnum):
    """What became of one connection's workflow when it was to be started."""

    STARTED = "started"
    RUNS = "runs"  # somebody else has started it
    ENDED = "ended"  # it is not to live any more


class Reconciler:
    """Starts a workflow for every live connection that has none. Harmless to repeat."""

    def __init__(self, store: Store, link: TemporalLink, lives: Lives, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._drifts = Drifts(store, link, lives, clock)

    async def all(
        self,
        *,
        compare: bool = True,
        older_than: timedelta | None = None,
        told: Callable[[Reconciled], None] | None = None,
        begin: Reconciled | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Reconciled:
        """Go through the store in batches, on from `begin`; `told` hears of each batch.

        `enough` is asked after each batch: another pass may go on from there.

        `compare` asks every workflow what it knows, else only those whose state differs from
        the store's. `older_than` starts anew what has run for longer. Raises Failure
        TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        before = None if older_than is None else self._clock.now() - older_than
        going = _Pass(self._drifts, await self._link.running_connections(), compare, before)
        done = begin or Reconciled()
        while not done.ended:
            async with self._store.read() as tx:
                batch = await tx.connections.live(done.after, _BATCH)
            for found in await going.through(batch):
                done = done.and_(found)
            done = replace(done, compared=done.compared and going.answered, ended=len(batch) < _BATCH)
            if batch:
                done = replace(done, after=batch[-1].id)
                if told is not None:
                    told(done)
            if enough():
                break
        await wake_overdue(self._store, self._link, self._clock)
        await restart_onboardings(self._store, self._link)
        return done

    async def revive(self, tenant: Tenant, connection_id: ConnectionId) -> Revival:
        """Start the workflow of one connection, unless it runs or is not to live any more."""
        async with self._store.read() as tx:
            connection = await tx.connections.get(tenant, connection_id)
        if connection is None or connection.state.final:
            return Revival.ENDED
        found = await self._drifts.revived(connection)
        if found.running:
            return Revival.RUNS
        return Revival.STARTED if found.started else Revival.ENDED


class _Pass:
    """One pass: what visibility said when it began, and whether any worker answers questions.

    Once nobody has answered for long, slowly asked either, nobody is asked any more.
    """

    def __init__(
        self, drifts: Drifts, running: dict[str, Running], compare: bool, before: datetime | None
    ) -> None:
        self._drifts = drifts
        self._running = running
        self._compare = compare
        self._before = before
        self._unanswered = 0
        self._given_up = False

    @property
    def answered(self) -> bool:
        return not self._given_up

    async def through(self, batch: list[Connection]) -> list[Found]:
        """Look at each of them, and a second time, with less at once, at those that didn't answer."""
        found = await together(self._look_at(it) for it in batch)
        silent = [place for place, it in enumerate(found) if not it.answered]
        self._unanswered = 0
        again = await together((self._ask_again(batch[place]) for place in silent), _AT_ONCE_AGAIN)
        for place, it in zip(silent, again, strict=True):
            found[place] = it
        self._given_up = self._given_up or self._silent
        return found

    @property
    def _silent(self) -> bool:
        return self._unanswered >= _SILENT

    async def _look_at(self, connection: Connection) -> Found:
        seen = self._running.get(workflow_id(connection.tenant, connection.id))
        if seen is None:
            found = await self._drifts.revived(connection)
            if found.started or not self._compare:
                return found
        elif self._before is not None and seen.began < self._before:
            return self._noted(await self._drifts.renewed(connection))
        differs = seen is not None and seen.state != connection.state
        if not (self._compare or differs) or self._given_up:
            return Found(connection)
        return await self._asked(connection)

    async def _ask_again(self, connection: Connection) -> Found:
        """It may be slow, or have ended since the pass began."""
        if self._silent:
            return Found(connection, answered=False)
        found = await self._drifts.revived(connection)
        return found if found.started else await self._asked(connection)

    async def _asked(self, connection: Connection) -> Found:
        if self._silent:
            return Found(connection, answered=False)
        return self._noted(await self._drifts.compared(connection))

    def _noted(self, found: Found) -> Found:
        self._unanswered = 0 if found.answered else self._unanswered + 1
        return found


async def together(work: Iterable[Awaitable[T]], at_once: int = _AT_ONCE) -> list[T]:
    """The results in order, with a bounded number under way."""
    turn = asyncio.Semaphore(at_once)

    async def one(it: Awaitable[T]) -> T:
        async with turn:
            return await it

    return await asyncio.gather(*(one(it) for it in work))
