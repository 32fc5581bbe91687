"""Has a run's history kept beyond Temporal's retention."""

from temporalio import activity

from activities.records import settled
from evergrant_server.core.clock import Clock
from evergrant_server.core.messages import ActivityName, RunEnds
from evergrant_server.core.outbox import history_export
from evergrant_server.store import Store, Tx


class HistoryActivities:
    """Asks the relay for an export. A run can't export its own last events: they aren't there yet."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.RUN_ENDS)
    async def run_ends(self, order: RunEnds) -> None:
        run = order.provenance
        message = history_export(
            order.tenant, order.connection_id, run.workflow_id, run.run_id, self._clock.now()
        )

        async def ask(tx: Tx) -> None:
            await tx.outbox.add(message)

        await settled(self._store, ask)
