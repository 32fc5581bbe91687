"""Requests that a run's history is kept beyond Temporal's retention.

A run that completes requests that itself; for a run that was terminated or reset, or timed out, the
recurring pass does.
"""

from datetime import datetime
from typing import NamedTuple

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ExportRunHistory
from evergrant_server.core.messages.names import CONNECTION_WORKFLOW_ID
from evergrant_server.core.outbox import history_export_message, history_target
from evergrant_server.store import Store, Transaction
from evergrant_server.temporal_link.link import TemporalLink

_BATCH = 200


class _ConnectionRun(NamedTuple):
    tenant: Tenant
    connection_id: ConnectionId
    workflow_id: str
    run_id: str


class HistoryActivities:
    """Requests exports from the relay, which makes them after a run has closed."""

    def __init__(self, store: Store, link: TemporalLink, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock

    @activity.defn(name=jobs.EXPORT_RUN_HISTORY.name)
    async def run_ends(self, request: ExportRunHistory) -> None:
        run = request.provenance
        message = history_export_message(
            request.tenant, request.connection_id, run.workflow_id, run.run_id, self._clock.now()
        )
        await commit_with_retries(self._store, lambda tx: tx.outbox.add_once(message))

    async def request_exports(self, since: datetime | None) -> int:
        """Put an export into the outbox for each run that closed since then. Returns their number.

        Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        requested, batch = 0, list[_ConnectionRun]()
        async for workflow, run_id in self._link.closed_connections(since):
            if (run := _connection_run(workflow, run_id)) is not None:
                batch.append(run)
            if len(batch) == _BATCH:
                requested += await self._request_missing(batch)
                batch.clear()
        return requested + await self._request_missing(batch)

    async def _request_missing(self, batch: list[_ConnectionRun]) -> int:
        async with self._store.read() as tx:
            missing = await self._not_exported(tx, batch)
        if not missing:
            return 0
        async with self._store.write() as tx:
            return sum([await self._request_export(tx, run) for run in await self._not_exported(tx, missing)])

    async def _not_exported(self, tx: Transaction, runs: list[_ConnectionRun]) -> list[_ConnectionRun]:
        exported = await tx.histories.closed_run_ids(
            [(run.tenant, run.workflow_id, run.run_id) for run in runs]
        )
        waiting = await tx.outbox.targets_with_undelivered([history_target(run.run_id) for run in runs])
        return [
            run for run in runs if run.run_id not in exported and history_target(run.run_id) not in waiting
        ]

    async def _request_export(self, tx: Transaction, run: _ConnectionRun) -> bool:
        if await tx.connections.get(run.tenant, run.connection_id) is None:
            return False  # another installation's, or created after the backup that was restored
        now = self._clock.now()
        await tx.outbox.add(
            history_export_message(run.tenant, run.connection_id, run.workflow_id, run.run_id, now)
        )
        return True


def _connection_run(workflow: str, run_id: str) -> _ConnectionRun | None:
    match = CONNECTION_WORKFLOW_ID.match(workflow)
    if match is None:
        return None
    return _ConnectionRun(Tenant(match["tenant"]), ConnectionId(match["connection"]), workflow, run_id)
