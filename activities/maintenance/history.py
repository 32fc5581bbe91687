"""Requests that a run's history is kept beyond Temporal's retention."""

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.messages.activities import ExportRunHistory
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.outbox import history_export_message
from evergrant_server.store import Store, Transaction


class HistoryActivities:
    """Requests exports from the relay, which makes them after the run has closed."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.EXPORT_RUN_HISTORY)
    async def run_ends(self, request: ExportRunHistory) -> None:
        run = request.provenance
        message = history_export_message(
            request.tenant, request.connection_id, run.workflow_id, run.run_id, self._clock.now()
        )

        async def add(tx: Transaction) -> None:
            await tx.outbox.add(message)

        await commit_with_retries(self._store, add)
