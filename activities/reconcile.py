"""Finds live connections without a workflow, and closed runs whose history nobody has kept."""

import logging
from datetime import timedelta

from temporalio import activity

from activities.heartbeat import heartbeats
from evergrant_server import audit
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.errors import Code
from evergrant_server.core.messages import ActivityName
from evergrant_server.core.upkeep import Mark, ReconcileOrder, Reconciliation
from evergrant_server.store import Store
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event
from evergrant_server.temporal_link import ClosedRuns, Reconciled, Reconciler

log = logging.getLogger("evergrant.reconcile")

_OVERLAP = timedelta(minutes=10)  # a run that closed this long before a pass may have been invisible to it
_SHOWN = 20
_HANDED_OVER_KEPT = timedelta(days=7)  # an operator may still want to see what was sent
_REPEATABLE = timedelta(days=1)  # a POST with its `Idempotency-Key`: answers may show a new key or a link
_BATCHES = 50
LONGEST_RUN = timedelta(minutes=40)  # inside the hour of `workflows.calls`, with time for what follows


class ReconcileActivities:
    """What the schedule has done again and again. A pass that was cut or is long goes on where it was."""

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        closed_runs: ClosedRuns,
        clock: Clock,
        deliveries_kept: timedelta,
        longest_run: timedelta = LONGEST_RUN,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._closed_runs = closed_runs
        self._clock = clock
        self._deliveries_kept = deliveries_kept
        self._longest_run = longest_run

    @activity.defn(name=ActivityName.RECONCILE)
    async def reconcile(self, order: ReconcileOrder) -> Reconciliation:
        """A pass, or as much of one as fits into a run; the next run does the rest.

        Workflows are asked for their generation only when the store seems to be a backup.
        """
        began = self._clock.now()
        progress = _Progress(_last_heartbeat() or order.so_far or Reconciliation())
        async with heartbeats(lambda: progress.news):
            progress.begin(await self._compares(order, progress.before))
            done = await self._reconciler.all(
                compare=progress.before.comparing,
                begin=Reconciled(after=progress.before.after),
                told=progress.tell,
                enough=lambda: progress.spent_s >= self._longest_run.total_seconds(),
            )
            progress.tell(done)
            progress.say_who_is_silent()
            exported = await self._closed_runs.have_exported(order.closed_since)
            await self._forget_old_secrets()
            await self._forget_delivered()
            await self._forget_answers()
            mark = await self._next_mark(order, progress.news, done.ended)
        ends = {"exported": exported, "mark": mark, "closed_since": began - _OVERLAP, "spent_s": 0}
        return progress.news.model_copy(update=ends | {"after": None if done.ended else done.after})

    async def _compares(self, order: ReconcileOrder, before: Reconciliation) -> bool:
        return order.compare or before.comparing or not await self._holds(order.mark)

    async def _forget_old_secrets(self) -> None:
        """Client secrets whose overlap has ended don't stay."""
        async with self._store.write() as tx:
            await tx.integrations.drop_overlapped(self._clock.now())

    async def _forget_delivered(self) -> None:
        """Messages that were handed over, and deliveries to webhooks that nothing wakes any more.

        In transactions of a bounded size, a bounded number a pass: the next one goes on.
        """
        now = self._clock.now()
        for _ in range(_BATCHES):
            async with self._store.write() as tx:
                if await tx.outbox.prune(now - _HANDED_OVER_KEPT) == 0:
                    break
        old = now - self._deliveries_kept
        async with self._store.read() as tx:
            idle = await tx.deliveries.webhooks_with_old(old)
        for tenant, webhook in idle:
            async with self._store.write() as tx:
                await tx.deliveries.prune(tenant, webhook, old)

    async def _forget_answers(self) -> None:
        old = self._clock.now() - _REPEATABLE
        for _ in range(_BATCHES):
            async with self._store.write() as tx:
                if await tx.idempotency.prune(old) == 0:
                    break

    async def _holds(self, mark: Mark | None) -> bool:
        if mark is None:
            return True
        async with self._store.read() as tx:
            return await audit.holds_mark(tx, mark)

    async def _next_mark(self, order: ReconcileOrder, news: Reconciliation, ended: bool) -> Mark | None:
        """The old one while somebody is behind, or a pass that asks hasn't heard of everybody.

        Then the next run asks as well. One that found the old mark had no reason to ask, unless the store
        was set back meanwhile; a newer one tells of more backups.
        """
        if news.behind or (news.comparing and not (ended and news.compared and not news.unanswered)):
            return order.mark
        async with self._store.read() as tx:
            if not news.comparing and order.mark is not None and not await audit.holds_mark(tx, order.mark):
                return order.mark
            return await audit.newest_mark(tx)


class _Progress:
    """What earlier runs of this pass and tries of this activity have done, and this one on top."""

    def __init__(self, before: Reconciliation) -> None:
        self.before = self.news = before
        self._began = elapsed()

    @property
    def spent_s(self) -> float:
        """Seconds of the machine, whatever its clock says."""
        return self.before.spent_s + elapsed() - self._began

    def begin(self, compare: bool) -> None:
        """Go on, unless what was looked at before wasn't asked, and is to be asked now."""
        if compare and not self.before.comparing:
            self.before = Reconciliation(comparing=True, spent_s=self.before.spent_s)
        self.news = self.before

    def tell(self, done: Reconciled) -> None:
        before = self.before
        for connection_id in done.behind[self.news.behind - before.behind :]:
            say(log, logging.WARNING, Event.STORE_BEHIND, code=Code.STORE_BEHIND, object=connection_id)
        self.news = Reconciliation(
            live=before.live + done.live,
            started=before.started + done.started,
            behind=before.behind + len(done.behind),
            first_behind=(*before.first_behind, *done.behind)[:_SHOWN],
            unanswered=before.unanswered + len(done.unanswered),
            first_unanswered=(*before.first_unanswered, *done.unanswered)[:_SHOWN],
            compared=before.compared and done.compared,
            comparing=before.comparing,
            after=done.after,
            spent_s=self.spent_s,
        )

    def say_who_is_silent(self) -> None:
        """Once a run: a worker that is away would fill the log."""
        if not self.news.unanswered:
            return
        named = ", ".join(self.news.first_unanswered)
        detail = f"{self.news.unanswered} didn't answer, the first {named}"
        say(log, logging.WARNING, Event.NOT_COMPARED, detail, code=Code.TEMPORAL_UNAVAILABLE)


def _last_heartbeat() -> Reconciliation | None:
    details = activity.info().heartbeat_details
    return Reconciliation.model_validate(details[0]) if details else None
