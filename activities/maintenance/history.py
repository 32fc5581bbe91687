"""Has a run's history kept beyond Temporal's retention."""

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.messages.connection import ActivityName, ExportRunHistory
from evergrant_server.core.outbox import history_export_message
from evergrant_server.store import Store, Transaction


class HistoryActivities:
    """Asks the relay for an export. A run can't export its own last events: they aren't there yet."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.EXPORT_RUN_HISTORY)
    async def run_ends(self, order: ExportRunHistory) -> None:
        run = order.provenance
        message = history_export_message(
            order.tenant, order.connection_id, run.workflow_id, run.run_id, self._clock.now()
        )

        async def ask(tx: Transaction) -> None:
            await tx.outbox.add(message)

        await commit_with_retries(self._store, ask)
