"""Reconcile: gives every live connection in the store a workflow, and compares the two.

Workflows of webhooks, definitions and replaced grants that were terminated, or lost with Temporal's
database, are started as well.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Generic, TypeVar

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.names import CONNECTION_WORKFLOW_ID, connection_workflow_id
from evergrant_server.store import Store
from evergrant_server.temporal_link.background_workflows import restart_background_workflows
from evergrant_server.temporal_link.drift_repair import CheckedConnection, DriftRepair, unless_unreadable
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.runs import RunningWorkflow
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter

T = TypeVar("T")

_BATCH = 200  # connections in memory at a time; their workflows' ids stand in one query of visibility
_MOST_NAMED = 1000
_PASSES_OF_A_WALK = 288  # of a day by default: what the counts don't show is noticed within as many
_CONCURRENCY = 16  # calls of Temporal at the same time; its frontend takes far more
_RETRY_CONCURRENCY = 4  # queries that are repeated: their worker may be slow
_UNANSWERED_LIMIT = 32  # consecutive queries without an answer that mean: no worker is running


@dataclass(frozen=True)
class Named(Generic[T]):
    """How many there are, and the first of them."""

    count: int = 0
    first: tuple[T, ...] = ()

    def including(self, *names: T) -> "Named[T]":
        """With these as well; no more are named than a person reads."""
        return Named(self.count + len(names), (*self.first, *names[: _MOST_NAMED - len(self.first)]))


_NONE: Named[str] = Named()


@dataclass(frozen=True)
class ReconcileCounts:
    """The progress of a pass, and in the end its result.

    `store_behind` names connections whose workflow knows a newer generation than the store: the
    store was restored from a backup, and their refresh tokens may be spent. `awaiting_provider`
    names those that were not restarted because the provider may still answer. `unanswered` names
    those whose workflow didn't answer two queries: their store may be behind. `unreadable` are id and
    reason of those that were skipped, because a row of theirs can't be read.
    """

    live: int = 0
    started: int = 0
    restarted: int = 0
    store_behind: Named[str] = _NONE
    awaiting_provider: Named[str] = _NONE
    unanswered: Named[str] = _NONE
    unreadable: Named[tuple[str, str]] = Named()
    workers_answered: bool = True  # False: no worker is running, so the rest was not compared
    after: str | None = None  # the last connection that was checked
    complete: bool = False  # no connection comes after it

    def including(self, checked: CheckedConnection) -> "ReconcileCounts":
        name = checked.connection.id
        if checked.unreadable is not None:
            return replace(self, unreadable=self.unreadable.including((name, checked.unreadable)))
        return replace(
            self,
            live=self.live + 1,
            started=self.started + checked.started,
            restarted=self.restarted + checked.restarted,
            store_behind=self.store_behind.including(*([name] * checked.store_behind)),
            awaiting_provider=self.awaiting_provider.including(*([name] * checked.awaiting_provider)),
            unanswered=self.unanswered.including(*([name] * (not checked.answered))),
        )


class Reconciler:
    """Starts a workflow for every live connection that has none. Does nothing the second time."""

    def __init__(self, store: Store, link: TemporalLink, starter: WorkflowStarter, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._repair = DriftRepair(store, link, starter, clock)

    async def reconcile_all(
        self,
        *,
        compare: bool = True,
        older_than: timedelta | None = None,
        on_progress: Callable[[ReconcileCounts], None] | None = None,
        resume_from: ReconcileCounts | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> ReconcileCounts:
        """Check all live connections in batches; `on_progress` and `should_stop` are called after each.

        `compare` queries every workflow, else only those whose state differs from the store's.
        `older_than` restarts workflows that have run for longer. A later call can continue a
        stopped pass with `resume_from`. Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        started_before = None if older_than is None else self._clock.now() - older_than
        current_pass = _ReconcilePass(self._repair, self._link, compare, started_before)
        counts = resume_from or ReconcileCounts()
        while not counts.complete:
            async with self._store.read() as tx:
                batch = await tx.connections.live_in_all_tenants(counts.after, _BATCH)
            for checked in await current_pass.check_batch(batch):
                counts = counts.including(checked)
            counts = replace(
                counts,
                unreadable=counts.unreadable.including(*((row.id, row.why) for row in batch.unreadable)),
                workers_answered=counts.workers_answered and current_pass.workers_answered,
                complete=not batch.has_more,
                after=batch.last or counts.after,
            )
            if batch and on_progress is not None:
                on_progress(counts)
            if should_stop():
                break
        await self._end_failing_runs()
        await restart_background_workflows(self._store, self._link, self._clock)
        return counts

    async def share_of_a_pass(self) -> int | None:
        """How many connections a pass looks at: a share of the live ones, while Temporal has as many runs
        as they are, and as many that revoke. None: a run is missing, or one too much, so it looks at all.

        Raises as `reconcile_all`.
        """
        async with self._store.read() as tx:
            live, revoking = await tx.connections.live_counts()
        if live != await self._link.open_connections():
            return None
        agrees = revoking == await self._link.open_connections(LifecycleState.REVOKING)
        return ceil(live / _PASSES_OF_A_WALK) if agrees else None

    async def _end_failing_runs(self) -> None:
        """Terminate the runs whose workflow task fails again and again. A connection gets another one."""
        async for workflow in self._link.failing_workflows():
            match = CONNECTION_WORKFLOW_ID.match(workflow)
            if match is None:
                await self._link.usable_run(workflow)
            else:
                await self.start_workflow(Tenant(match["tenant"]), ConnectionId(match["connection"]))

    async def start_workflow(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        """Start the workflow of one connection, unless it is running. False: the connection has ended,
        or its tenant lives in another cell."""
        async with self._store.read() as tx:
            connection = await tx.connections.get(tenant, connection_id)
            is_elsewhere = await tx.tenants.is_elsewhere(tenant)
        if is_elsewhere or connection is None or connection.state.is_final:
            return False
        checked = await self._repair.start_if_closed(connection)
        return checked.running or checked.started


class _ReconcilePass:
    """One pass over the connections, a batch in memory at a time.

    It stops to query workflows once so many didn't answer in a row that no worker can be running.
    """

    def __init__(
        self,
        repair: DriftRepair,
        link: TemporalLink,
        compare: bool,
        started_before: datetime | None,
    ) -> None:
        self._repair = repair
        self._link = link
        self._running: dict[str, RunningWorkflow] = {}  # of the batch, by their workflows' ids
        self._compare = compare
        self._started_before = started_before
        self._unanswered_in_a_row = 0
        self.workers_answered = True

    async def check_batch(self, batch: list[Connection]) -> list[CheckedConnection]:
        """Check each connection; check those again, fewer at a time, whose workflow didn't answer."""
        names = [connection_workflow_id(connection.tenant, connection.id) for connection in batch]
        self._running = await self._link.running_connections(names) if names else {}
        checked = await gather_bounded(unless_unreadable(row, self._check(row)) for row in batch)
        unanswered = [index for index, result in enumerate(checked) if not result.answered]
        self._unanswered_in_a_row = 0
        retries = (unless_unreadable(batch[index], self._retry(batch[index])) for index in unanswered)
        again = await gather_bounded(retries, _RETRY_CONCURRENCY)
        for index, result in zip(unanswered, again, strict=True):
            checked[index] = result
        if self._limit_reached:
            self.workers_answered = False
        return checked

    @property
    def _limit_reached(self) -> bool:
        return self._unanswered_in_a_row >= _UNANSWERED_LIMIT

    async def _check(self, connection: Connection) -> CheckedConnection:
        listed = self._running.get(connection_workflow_id(connection.tenant, connection.id))
        if listed is None or listed.is_failing:
            checked = await self._repair.start_if_closed(connection)
            if checked.started or not self._compare:
                return checked
        elif self._started_before is not None and listed.started_at < self._started_before:
            return self._count_unanswered(await self._repair.restart(connection))
        differs = listed is not None and listed.state != connection.state
        if not (self._compare or differs) or not self.workers_answered:
            return CheckedConnection(connection)
        return await self._compare_workflow(connection)

    async def _retry(self, connection: Connection) -> CheckedConnection:
        """Check a connection again: its worker may be slow, or its run may have closed since."""
        if self._limit_reached:
            return CheckedConnection(connection, answered=False)
        checked = await self._repair.start_if_closed(connection)
        return checked if checked.started else await self._compare_workflow(connection)

    async def _compare_workflow(self, connection: Connection) -> CheckedConnection:
        if self._limit_reached:
            return CheckedConnection(connection, answered=False)
        return self._count_unanswered(await self._repair.compare(connection))

    def _count_unanswered(self, checked: CheckedConnection) -> CheckedConnection:
        self._unanswered_in_a_row = 0 if checked.answered else self._unanswered_in_a_row + 1
        return checked


async def gather_bounded(calls: Iterable[Awaitable[T]], limit: int = _CONCURRENCY) -> list[T]:
    """Await the calls, at most `limit` at the same time. Returns the results in order."""
    semaphore = asyncio.Semaphore(limit)

    async def bounded(call: Awaitable[T]) -> T:
        async with semaphore:
            return await call

    return await asyncio.gather(*(bounded(call) for call in calls))
