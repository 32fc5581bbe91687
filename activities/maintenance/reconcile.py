"""Finds live connections without a workflow, and closed runs whose history nobody has kept."""

import logging
from datetime import timedelta

from temporalio import activity

from activities.support.heartbeat import heartbeating
from evergrant_server import audit
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.connection import ActivityName
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.store import Store
from evergrant_server.telemetry.logs import log_event
from evergrant_server.telemetry.names import LogEvent
from evergrant_server.temporal_link import ClosedRunExporter, ReconcileCounts, Reconciler

log = logging.getLogger("evergrant.reconcile")

_OVERLAP = timedelta(minutes=10)  # a run that closed this long before a pass may have been invisible to it
_MAX_NAMED = 20
_DELIVERED_AGE = timedelta(days=7)  # an operator may still want to see what was sent
_IDEMPOTENCY_AGE = timedelta(
    days=1
)  # a POST with its `Idempotency-Key`: answers may show a new key or a link
_MAX_PRUNE_BATCHES = 50
RUN_LIMIT = timedelta(minutes=40)  # inside the hour of `workflows.activity_calls`, with time for what follows


class ReconcileActivities:
    """What the schedule has done again and again. A pass that was cut or is long goes on where it was."""

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        closed_runs: ClosedRunExporter,
        clock: Clock,
        deliveries_kept: timedelta,
        longest_run: timedelta = RUN_LIMIT,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._closed_runs = closed_runs
        self._clock = clock
        self._deliveries_kept = deliveries_kept
        self._longest_run = longest_run

    @activity.defn(name=ActivityName.RECONCILE)
    async def reconcile(self, order: ReconcileRequest) -> ReconcileResult:
        """A pass, or as much of one as fits into a run; the next run does the rest.

        Workflows are asked for their generation only when the store seems to be a backup.
        """
        began = self._clock.now()
        progress = _Progress(_last_heartbeat() or order.so_far or ReconcileResult())
        async with heartbeating(lambda: progress.result):
            progress.start(await self._should_compare(order, progress.before))
            done = await self._reconciler.reconcile_all(
                compare=progress.before.comparing,
                begin=ReconcileCounts(after=progress.before.after),
                told=progress.record,
                enough=lambda: progress.spent_s >= self._longest_run.total_seconds(),
            )
            progress.record(done)
            progress.log_unanswered()
            exported = await self._closed_runs.request_exports(order.closed_since)
            await self._prune_client_secrets()
            await self._prune_outbox_and_deliveries()
            await self._prune_idempotent_responses()
            mark = await self._next_mark(order, progress.result, done.complete)
        ends = {"exported": exported, "mark": mark, "closed_since": began - _OVERLAP, "spent_s": 0}
        return progress.result.model_copy(update=ends | {"after": None if done.complete else done.after})

    async def _should_compare(self, order: ReconcileRequest, before: ReconcileResult) -> bool:
        return order.compare or before.comparing or not await self._store_has_mark(order.mark)

    async def _prune_client_secrets(self) -> None:
        """Client secrets whose overlap has ended don't stay."""
        async with self._store.write() as tx:
            await tx.integrations.delete_expired_previous_secrets(self._clock.now())

    async def _prune_outbox_and_deliveries(self) -> None:
        """Messages that were handed over, and deliveries to webhooks that nothing wakes any more.

        In transactions of a bounded size, a bounded number a pass: the next one goes on.
        """
        now = self._clock.now()
        for _ in range(_MAX_PRUNE_BATCHES):
            async with self._store.write() as tx:
                if await tx.outbox.prune(now - _DELIVERED_AGE) == 0:
                    break
        old = now - self._deliveries_kept
        async with self._store.read() as tx:
            idle = await tx.deliveries.webhooks_with_deliveries_before(old)
        for tenant, webhook in idle:
            async with self._store.write() as tx:
                await tx.deliveries.prune(tenant, webhook, old)

    async def _prune_idempotent_responses(self) -> None:
        old = self._clock.now() - _IDEMPOTENCY_AGE
        for _ in range(_MAX_PRUNE_BATCHES):
            async with self._store.write() as tx:
                if await tx.idempotency.prune(old) == 0:
                    break

    async def _store_has_mark(self, mark: AuditCheckpoint | None) -> bool:
        if mark is None:
            return True
        async with self._store.read() as tx:
            return await audit.contains_checkpoint(tx, mark)

    async def _next_mark(
        self, order: ReconcileRequest, news: ReconcileResult, ended: bool
    ) -> AuditCheckpoint | None:
        """The old one while somebody is behind, or a pass that asks hasn't heard of everybody.

        Then the next run asks as well. One that found the old mark had no reason to ask, unless the store
        was set back meanwhile; a newer one tells of more backups.
        """
        if news.behind or (news.comparing and not (ended and news.compared and not news.unanswered)):
            return order.mark
        async with self._store.read() as tx:
            if (
                not news.comparing
                and order.mark is not None
                and not await audit.contains_checkpoint(tx, order.mark)
            ):
                return order.mark
            return await audit.newest_checkpoint(tx)


class _Progress:
    """What earlier runs of this pass and tries of this activity have done, and this one on top."""

    def __init__(self, before: ReconcileResult) -> None:
        self.before = self.result = before
        self._began = seconds_since_boot()

    @property
    def spent_s(self) -> float:
        """Seconds of the machine, whatever its clock says."""
        return self.before.spent_s + seconds_since_boot() - self._began

    def start(self, compare: bool) -> None:
        """Go on, unless what was looked at before wasn't asked, and is to be asked now."""
        if compare and not self.before.comparing:
            self.before = ReconcileResult(comparing=True, spent_s=self.before.spent_s)
        self.result = self.before

    def record(self, done: ReconcileCounts) -> None:
        before = self.before
        for connection_id in done.store_behind[self.result.behind - before.behind :]:
            log_event(
                log, logging.WARNING, LogEvent.STORE_BEHIND, code=ErrorCode.STORE_BEHIND, object=connection_id
            )
        self.result = ReconcileResult(
            live=before.live + done.live,
            started=before.started + done.started,
            behind=before.behind + len(done.store_behind),
            first_behind=(*before.first_behind, *done.store_behind)[:_MAX_NAMED],
            unanswered=before.unanswered + len(done.unanswered),
            first_unanswered=(*before.first_unanswered, *done.unanswered)[:_MAX_NAMED],
            compared=before.compared and done.workers_answered,
            comparing=before.comparing,
            after=done.after,
            spent_s=self.spent_s,
        )

    def log_unanswered(self) -> None:
        """Once a run: a worker that is away would fill the log."""
        if not self.result.unanswered:
            return
        named = ", ".join(self.result.first_unanswered)
        detail = f"{self.result.unanswered} didn't answer, the first {named}"
        log_event(log, logging.WARNING, LogEvent.NOT_COMPARED, detail, code=ErrorCode.TEMPORAL_UNAVAILABLE)


def _last_heartbeat() -> ReconcileResult | None:
    details = activity.info().heartbeat_details
    return ReconcileResult.model_validate(details[0]) if details else None
