"""Rebuilds what Temporal should hold from what the store holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import ConnectionId, Tenant, connection_workflow_id
from evergrant_server.store import Store
from evergrant_server.temporal_link.drift_repair import CheckedConnection, DriftRepair
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.overdue_deliveries import wake_overdue_webhooks
from evergrant_server.temporal_link.rollout_restart import restart_onboardings
from evergrant_server.temporal_link.runs import RunningWorkflow
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter

T = TypeVar("T")

_BATCH = 200
_CONCURRENCY = 16  # starts, looks and questions under way; Temporal's frontend takes far more
_RETRY_CONCURRENCY = 4  # of those that weren't answered in time: their worker may be a slow one
_UNANSWERED_LIMIT = 32  # questions in a row that nobody answers: no worker is there


@dataclass(frozen=True)
class ReconcileCounts:
    """How far a pass is, and in the end what it did.

    `behind` names those whose workflow knows a newer generation than the store: the store was
    restored from a backup, and their refresh tokens may be spent. `busy` names those that were
    to be restarted and may be awaiting a provider's answer. `unanswered` names those that were
    asked and didn't answer, the second time either: whether the store is behind them is open.
    """

    live: int = 0
    started: int = 0
    restarted: int = 0
    store_behind: tuple[str, ...] = ()
    awaiting_provider: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    workers_answered: bool = True  # False: no worker answered, so nobody knows whether the store is behind
    after: str | None = None  # the last connection that was looked at
    complete: bool = False  # there is none after it

    def including(self, found: CheckedConnection) -> "ReconcileCounts":
        name = found.connection.id
        return replace(
            self,
            live=self.live + 1,
            started=self.started + found.started,
            restarted=self.restarted + found.restarted,
            store_behind=(*self.store_behind, name) if found.store_behind else self.store_behind,
            awaiting_provider=(*self.awaiting_provider, name)
            if found.awaiting_provider
            else self.awaiting_provider,
            unanswered=self.unanswered if found.answered else (*self.unanswered, name),
        )


class StartOutcome(StrEnum):
    """What became of one connection's workflow when it was to be started."""

    STARTED = "started"
    ALREADY_RUNNING = "runs"  # somebody else has started it
    NOT_NEEDED = "ended"  # it is not to live any more


class Reconciler:
    """Starts a workflow for every live connection that has none. Harmless to repeat."""

    def __init__(self, store: Store, link: TemporalLink, lives: WorkflowStarter, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._drifts = DriftRepair(store, link, lives, clock)

    async def reconcile_all(
        self,
        *,
        compare: bool = True,
        older_than: timedelta | None = None,
        told: Callable[[ReconcileCounts], None] | None = None,
        begin: ReconcileCounts | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> ReconcileCounts:
        """Go through the store in batches, on from `begin`; `told` hears of each batch.

        `enough` is asked after each batch: another pass may go on from there.

        `compare` asks every workflow what it knows, else only those whose state differs from
        the store's. `older_than` starts anew what has run for longer. Raises Failure
        TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        before = None if older_than is None else self._clock.now() - older_than
        going = _ReconcilePass(self._drifts, await self._link.running_connections(), compare, before)
        done = begin or ReconcileCounts()
        while not done.complete:
            async with self._store.read() as tx:
                batch = await tx.connections.live_in_all_tenants(done.after, _BATCH)
            for found in await going.check_batch(batch):
                done = done.including(found)
            done = replace(
                done,
                workers_answered=done.workers_answered and going.workers_answered,
                complete=len(batch) < _BATCH,
            )
            if batch:
                done = replace(done, after=batch[-1].id)
                if told is not None:
                    told(done)
            if enough():
                break
        await wake_overdue_webhooks(self._store, self._link, self._clock)
        await restart_onboardings(self._store, self._link)
        return done

    async def start_workflow(self, tenant: Tenant, connection_id: ConnectionId) -> StartOutcome:
        """Start the workflow of one connection, unless it runs or is not to live any more."""
        async with self._store.read() as tx:
            connection = await tx.connections.get(tenant, connection_id)
        if connection is None or connection.state.is_final:
            return StartOutcome.NOT_NEEDED
        found = await self._drifts.start_if_closed(connection)
        if found.running:
            return StartOutcome.ALREADY_RUNNING
        return StartOutcome.STARTED if found.started else StartOutcome.NOT_NEEDED


class _ReconcilePass:
    """One pass: what visibility said when it began, and whether any worker answers questions.

    Once nobody has answered for long, slowly asked either, nobody is asked any more.
    """

    def __init__(
        self, drifts: DriftRepair, running: dict[str, RunningWorkflow], compare: bool, before: datetime | None
    ) -> None:
        self._drifts = drifts
        self._running = running
        self._compare = compare
        self._before = before
        self._unanswered_in_a_row = 0
        self._given_up = False

    @property
    def workers_answered(self) -> bool:
        return not self._given_up

    async def check_batch(self, batch: list[Connection]) -> list[CheckedConnection]:
        """Look at each of them, and a second time, with less at once, at those that didn't answer."""
        found = await gather_bounded(self._check(it) for it in batch)
        silent = [place for place, it in enumerate(found) if not it.answered]
        self._unanswered_in_a_row = 0
        again = await gather_bounded((self._retry(batch[place]) for place in silent), _RETRY_CONCURRENCY)
        for place, it in zip(silent, again, strict=True):
            found[place] = it
        self._given_up = self._given_up or self._limit_reached
        return found

    @property
    def _limit_reached(self) -> bool:
        return self._unanswered_in_a_row >= _UNANSWERED_LIMIT

    async def _check(self, connection: Connection) -> CheckedConnection:
        seen = self._running.get(connection_workflow_id(connection.tenant, connection.id))
        if seen is None:
            found = await self._drifts.start_if_closed(connection)
            if found.started or not self._compare:
                return found
        elif self._before is not None and seen.started_at < self._before:
            return self._count_unanswered(await self._drifts.restart(connection))
        differs = seen is not None and seen.state != connection.state
        if not (self._compare or differs) or self._given_up:
            return CheckedConnection(connection)
        return await self._compare_workflow(connection)

    async def _retry(self, connection: Connection) -> CheckedConnection:
        """It may be slow, or have ended since the pass began."""
        if self._limit_reached:
            return CheckedConnection(connection, answered=False)
        found = await self._drifts.start_if_closed(connection)
        return found if found.started else await self._compare_workflow(connection)

    async def _compare_workflow(self, connection: Connection) -> CheckedConnection:
        if self._limit_reached:
            return CheckedConnection(connection, answered=False)
        return self._count_unanswered(await self._drifts.compare(connection))

    def _count_unanswered(self, found: CheckedConnection) -> CheckedConnection:
        self._unanswered_in_a_row = 0 if found.answered else self._unanswered_in_a_row + 1
        return found


async def gather_bounded(work: Iterable[Awaitable[T]], at_once: int = _CONCURRENCY) -> list[T]:
    """The results in order, with a bounded number under way."""
    turn = asyncio.Semaphore(at_once)

    async def one(it: Awaitable[T]) -> T:
        async with turn:
            return await it

    return await asyncio.gather(*(one(it) for it in work))
