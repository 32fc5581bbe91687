"""The recurring pass over the store: missing workflows, unexported histories, broken rows and old rows.

Old rows are deleted last: see `pruning`.
"""

import logging
from datetime import datetime, timedelta

from temporalio import activity

from activities.histories import HistoryActivities
from activities.pruning import Pruning
from activities.support.temporal import heartbeating, last_heartbeat
from activities.support.transactions import record_once_a_day
from evergrant_server import audit
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link.reconcile import ReconcileCounts, Reconciler

log = logging.getLogger("evergrant.reconcile")

RUN_LIMIT = timedelta(minutes=40)  # less than the schedule's hour, with time for what follows the pass
_OVERLAP = timedelta(minutes=10)  # visibility may have missed a run that closed this long before a pass
_MAX_NAMED = 20

_TEMPORAL = "temporal"  # as an anchor of the audit log


class ReconcileActivities:
    """Runs of the pass. A run that is cut or reaches its limit is continued by the next one."""

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        histories: HistoryActivities,
        clock: Clock,
        pruning: Pruning,
        run_limit: timedelta = RUN_LIMIT,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._histories = histories
        self._clock = clock
        self._pruning = pruning
        self._run_limit = run_limit

    @activity.defn(name=jobs.RECONCILE.name)
    async def reconcile(self, request: ReconcileRequest) -> ReconcileResult:
        """Check as many connections as fit into a run, then export histories and prune the store.

        Workflows are queried for their generation only when the store seems to be a backup.
        """
        began = self._clock.now()
        progress = _Progress(last_heartbeat(ReconcileResult) or request.so_far or ReconcileResult())
        async with heartbeating(lambda: progress.result):
            await self._report_another_story(request.audit_checkpoint)
            progress.start(await self._should_compare(request, progress.before))
            share = await self._share(progress.before)
            counts = await self._walk(progress, request.walked_to, share)
            exported = await self._histories.request_exports(request.closed_since)
            await self._pruning.run()
            await report_broken_rows(self._store, self._clock.now())
            goes_on = share is None and not counts.complete
            checkpoint = await self._next_checkpoint(request, progress.result, not goes_on)
        return progress.result.__replace__(
            exported=exported,
            audit_checkpoint=checkpoint,
            closed_since=began - _OVERLAP,
            spent_s=0,
            after=counts.after if goes_on else None,
            walked_to=None if share is None or counts.complete else counts.after,
        )

    async def _share(self, before: ReconcileResult) -> int | None:
        """How many connections this pass looks at; None: all, as a pass does that began so, or compares."""
        if before.comparing or before.after is not None:
            return None
        return await self._reconciler.share_of_a_pass()

    async def _walk(self, progress: "_Progress", walked_to: str | None, share: int | None) -> ReconcileCounts:
        """Look at the connections that come next: all of them while this run has time, or a share of them."""

        def should_stop() -> bool:
            enough = share is not None and progress.result.live >= share
            return enough or progress.spent_s >= self._run_limit.total_seconds()

        counts = await self._reconciler.reconcile_all(
            compare=progress.before.comparing,
            resume_from=ReconcileCounts(after=progress.before.after if share is None else walked_to),
            on_progress=progress.record,
            should_stop=should_stop,
        )
        progress.record(counts)
        progress.log_unanswered()
        return counts

    async def _should_compare(self, request: ReconcileRequest, before: ReconcileResult) -> bool:
        return (
            request.compare
            or before.comparing
            or not await self._store_has_checkpoint(request.audit_checkpoint)
        )

    async def _store_has_checkpoint(self, checkpoint: AuditCheckpoint | None) -> bool:
        if checkpoint is None:
            return True
        async with self._store.read() as tx:
            return await audit.contains_checkpoint(tx, checkpoint)

    async def _report_another_story(self, checkpoint: AuditCheckpoint | None) -> None:
        """Record that the audit log doesn't extend the signed checkpoint that Temporal has kept."""
        if checkpoint is None or checkpoint.note is None:
            return
        async with self._store.read() as tx:
            if await audit.log_extends(tx, checkpoint.note):
                return
        why, now = "the log doesn't extend the signed checkpoint that Temporal has kept", self._clock.now()
        action = AuditAction.ANCHOR_REFUSED
        if await record_once_a_day(self._store, now, INSTALLATION, action, _TEMPORAL, {"why": why}):
            log_event(log, logging.ERROR, LogEvent.ANCHOR_LATE, why, object=_TEMPORAL)

    async def _next_checkpoint(
        self, request: ReconcileRequest, result: ReconcileResult, complete: bool
    ) -> AuditCheckpoint | None:
        """The checkpoint for the next run: a new one, or the old one so that the next run compares again.

        The old one stays while a connection's store is behind, while a comparison is incomplete,
        and when the store lost it during a run that didn't compare.
        """
        compared_all = complete and result.compared and not result.unanswered
        if result.behind or (result.comparing and not compared_all):
            return request.audit_checkpoint
        if not result.comparing and not await self._store_has_checkpoint(request.audit_checkpoint):
            return request.audit_checkpoint
        async with self._store.read() as tx:
            return await audit.newest_checkpoint(tx)


class _Progress:
    """The result of earlier runs of this pass and attempts of this activity, and of this one so far."""

    def __init__(self, before: ReconcileResult) -> None:
        self.before = self.result = before
        self._began = seconds_since_boot()

    @property
    def spent_s(self) -> float:
        """Seconds of this run, by the machine's monotonic clock, with earlier attempts."""
        return self.before.spent_s + seconds_since_boot() - self._began

    def start(self, compare: bool) -> None:
        """Continue, or start from the first connection when earlier runs didn't compare but this one must."""
        if compare and not self.before.comparing:
            self.before = ReconcileResult(comparing=True, spent_s=self.before.spent_s)
        self.result = self.before

    def record(self, counts: ReconcileCounts) -> None:
        before = self.before
        for connection_id in counts.store_behind.first[self.result.behind - before.behind :]:
            log_event(
                log,
                logging.WARNING,
                LogEvent.STORE_BEHIND,
                code=ErrorCode.STORE_BEHIND,
                object=connection_id,
            )
        metrics.report_unreadable(log, counts.unreadable.first[self.result.unreadable - before.unreadable :])
        unreadable = tuple(id for id, _ in counts.unreadable.first)
        self.result = ReconcileResult(
            live=before.live + counts.live,
            started=before.started + counts.started,
            behind=before.behind + counts.store_behind.count,
            first_behind=(*before.first_behind, *counts.store_behind.first)[:_MAX_NAMED],
            unanswered=before.unanswered + counts.unanswered.count,
            first_unanswered=(*before.first_unanswered, *counts.unanswered.first)[:_MAX_NAMED],
            unreadable=before.unreadable + counts.unreadable.count,
            first_unreadable=(*before.first_unreadable, *unreadable)[:_MAX_NAMED],
            compared=before.compared and counts.workers_answered,
            comparing=before.comparing,
            after=counts.after,
            spent_s=self.spent_s,
        )

    def log_unanswered(self) -> None:
        """Log the workflows that didn't answer, once a run: without a worker there are many."""
        if not self.result.unanswered:
            return
        named = ", ".join(self.result.first_unanswered)
        detail = f"{self.result.unanswered} didn't answer, the first {named}"
        log_event(log, logging.WARNING, LogEvent.NOT_COMPARED, detail, code=ErrorCode.TEMPORAL_UNAVAILABLE)


async def report_broken_rows(store: Store, now: datetime) -> None:
    """Raise an alarm for each broken row that says who may do what, and record it.

    Apps, permits, integrations, definitions, exports and the ends of audit trees; connections and consents
    are checked where they are used. Raises Failure STORE_UNAVAILABLE.
    """
    for broken in (*await broken_configuration(store), *await audit.broken_heads(store)):
        report_broken_authority(broken.failure)
        action, detail = AuditAction.AUTHORITY_BROKEN, {"table": broken.table}
        await record_once_a_day(store, now, broken.tenant, action, broken.row, detail)
