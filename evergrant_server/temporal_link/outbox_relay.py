"""The relay: delivers the outbox to Temporal, at least once and in order per workflow."""

import asyncio
import logging
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from evergrant_server import audit
from evergrant_server.audit.records import newest_drills
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, OutboxId, Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.names import CONNECTION_WORKFLOW_ID
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.store import HistoryExport, Store
from evergrant_server.telemetry import metrics, traces
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.runs import WorkflowNotRunning

log = logging.getLogger("evergrant.relay")

_CLAIM_TIME = timedelta(seconds=30)  # after this, another relay may claim the message
_BATCH = 50  # claimed in one transaction, which looks at all that wait, and delivered side by side
_RELEASE_LIMIT_S = 2.0  # a database that hangs keeps no process from ending
_SLOW_S = 0.1  # the next batch waits no longer for a delivery
_MOST_SLOW = 100  # deliveries under way beside a batch
_FIRST_RETRY = timedelta(seconds=1)
_LONGEST_RETRY = timedelta(minutes=5)
_REPORT_INTERVAL_S = 5.0
_REVOCATIONS_INTERVAL_S = 60.0


class OutboxRelay:
    """Delivers messages. Any number may run: each claims a message before it delivers it."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        reconciler: Reconciler,
        clock: Clock,
        interval: timedelta = _FIRST_RETRY,
        *,
        bulk: bool = True,
    ) -> None:
        """Without `bulk` it leaves imports to other relays: its process has callers that wait."""
        self._store = store
        self._link = link
        self._reconciler = reconciler
        self._clock = clock
        self._interval = interval.total_seconds()
        self._bulk = bulk
        self._name = f"relay-{secrets.token_hex(4)}"
        self._notified = asyncio.Event()
        self._slow: set[asyncio.Task[None]] = set()  # deliveries that their batch has left behind
        self._claimed = set[OutboxId]()  # neither delivered nor put off
        self._empty_at: int | None = None  # `Store.commits_seen` when no message was undelivered
        self._reported_at = -_REPORT_INTERVAL_S
        self._revocations_reported_at = -_REVOCATIONS_INTERVAL_S

    def notify(self) -> None:
        """Wake the relay after a message was committed, instead of at its next interval."""
        self._notified.set()

    async def run(self) -> None:
        """Deliver until cancelled; then give back what was claimed: another relay takes it at once."""
        try:
            while True:
                self._notified.clear()
                await self._report_depth()
                if await self.deliver_batch() == 0:
                    # not wait_for: before Python 3.12 it loses a cancellation that comes with a notification
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._interval):
                            await self._notified.wait()
        finally:
            await _cancelled(self._slow)
            await self._release()

    async def _release(self) -> None:
        if not self._claimed:
            return
        with suppress(Failure, TimeoutError):  # then the claims run out
            async with asyncio.timeout(_RELEASE_LIMIT_S), self._store.write() as tx:
                await tx.outbox.release(self._claimed, self._name)

    async def _report_depth(self) -> None:
        """Set the metrics of the outbox, at most every few seconds because it costs a query."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._reported_at + _REPORT_INTERVAL_S:
            return
        self._reported_at = now_s
        await self._report_revocations(now_s)
        if self._empty_at is not None:  # as of the last look, at most an interval ago
            metrics.OUTBOX_DEPTH.set(0)
            metrics.OUTBOX_AGE.set(0)
            return
        now = self._clock.now()
        with suppress(Failure):  # the next round logs that the store is unavailable
            async with self._store.read() as tx:
                depth, oldest = await tx.outbox.depth(now), await tx.outbox.oldest_undelivered_at()
            metrics.OUTBOX_DEPTH.set(depth)
            metrics.OUTBOX_AGE.set((now - oldest).total_seconds() if oldest else 0)

    async def _report_revocations(self, now_s: float) -> None:
        """Set the metrics of the oldest revocation and the last good drill, once a minute."""
        if now_s < self._revocations_reported_at + _REVOCATIONS_INTERVAL_S:
            return
        self._revocations_reported_at, now = now_s, self._clock.now()
        with suppress(Failure):
            async with self._store.read() as tx:
                waits = await tx.connections.revoking_since_before(now, 1)
                waits += await tx.replaced_grants.pending_since_before(now, 1)
                drilled_at = (await newest_drills(tx)).good_at
            metrics.REVOCATION_AGE.set(max(((now - wait.since).total_seconds() for wait in waits), default=0))
            if drilled_at is not None:
                metrics.DRILL_AGE.set((now - drilled_at).total_seconds())

    async def deliver_batch(self) -> int:
        """Claim and deliver a batch of messages, each for another workflow. Returns how many were claimed.

        A delivery that takes long goes on by itself: only later messages for the same workflow wait.
        """
        try:
            while len(self._slow) >= _MOST_SLOW:
                await asyncio.wait(self._slow, return_when=asyncio.FIRST_COMPLETED)
            if not await self._is_any_due():
                return 0
            async with self._store.write() as tx:
                now = self._clock.now()
                claim = (self._name, now, _CLAIM_TIME, _BATCH)
                batch = await tx.outbox.claim(*claim, bulk=self._bulk, refuse=report_broken_authority)
                self._claimed.update(message.id for message in batch)
            await self._deliver_all(batch)
            return len(batch)
        except Exception as error:  # the relay must not end: nothing would restart it
            _log_stuck(error)
        return 0

    async def _deliver_all(self, batch: Sequence[OutboxMessage]) -> None:
        """Deliver the messages side by side. Raises what kept one from being put off."""
        deliveries = {
            asyncio.create_task(self._deliver(messages[0])): [message.id for message in messages]
            for messages in _delivered_as_one(batch)
        }
        try:
            ended, slow = await asyncio.wait(deliveries, timeout=_SLOW_S) if batch else (set(), set())
        except asyncio.CancelledError:
            await _cancelled(deliveries)
            raise
        for delivery in slow:
            task = asyncio.create_task(self._end_slow(deliveries[delivery], delivery))
            self._slow.add(task)
            task.add_done_callback(self._slow.discard)
        done = [deliveries[task] for task in ended if task.exception() is None and task.result()]
        await self._mark_delivered([id for ids in done for id in ids])
        for task in ended:
            task.result()

    async def _end_slow(self, ids: Sequence[OutboxId], delivery: asyncio.Task[bool]) -> None:
        try:
            if await delivery:
                await self._mark_delivered(ids)
        except Exception as error:
            _log_stuck(error)

    async def _is_any_due(self) -> bool:
        """Whether a message can be claimed: found out without a write transaction, and without any while
        nothing was committed since the outbox was seen empty."""
        commits = await self._store.commits_seen()  # before the look: a commit after it changes this
        if commits is not None and commits == self._empty_at:
            return False
        async with self._store.read() as tx:
            waiting = await tx.outbox.waiting(self._clock.now(), _CLAIM_TIME, bulk=self._bulk)
        self._empty_at = None if waiting.any else commits
        return waiting.due

    async def _deliver(self, message: OutboxMessage) -> bool:
        """Deliver one message or postpone it, so that a failure doesn't hold up the others."""
        try:
            return await self._deliver_or_restart(message)
        except Failure as failure:
            await self._postpone(message, failure.code)
        except Exception as unexpected:
            # only the class: the text may quote a secret
            await self._postpone(message, f"{ErrorCode.INTERNAL}: {type(unexpected).__name__}")
        return False

    async def _deliver_or_restart(self, message: OutboxMessage) -> bool:
        """True when the message needs no further delivery; False when it was postponed."""
        try:
            with traces.continue_trace(_request_context(message)):
                await self._dispatch(message)
        except WorkflowNotRunning:
            return await self._handle_missing_workflow(message)
        return True

    async def _handle_missing_workflow(self, message: OutboxMessage) -> bool:
        """Start the workflow again if the store says that it is needed, else drop the message."""
        match = CONNECTION_WORKFLOW_ID.match(message.target)
        needed = False
        if match is not None:
            tenant, connection = Tenant(match["tenant"]), ConnectionId(match["connection"])
            needed = await self._reconciler.start_workflow(tenant, connection)
        if not needed:
            detail = f"{message.kind} {message.name}"
            log_event(log, logging.INFO, LogEvent.MESSAGE_TOO_LATE, detail, object=message.target)
            return True
        # the new run may have missed the message, and receiving it twice does no harm
        await self._postpone(message, "its workflow was started again")
        return False

    async def _dispatch(self, message: OutboxMessage) -> None:
        match message.kind:
            case OutboxKind.SIGNAL:
                await self._require_usable_run(message.target)
                await self._link.signal(message.target, message.name, message.payload)
            case OutboxKind.EXPORT_HISTORY:
                await self._export_history(message)
            case _:
                await self._link.start(start_requests.from_outbox(message))

    async def _require_usable_run(self, target: str) -> None:
        """Raises WorkflowNotRunning when no run can handle a signal: none is open, or it was terminated just
        now because it was foreign or stuck. Temporal would take the signal, and it would be lost.
        """
        run = await self._link.usable_run(target)
        if run is None or not run.running:
            raise WorkflowNotRunning

    async def _export_history(self, message: OutboxMessage) -> None:
        """Store a closed run's history, sealed as it is in Temporal, with an audit record; of an erased
        connection nothing."""
        payload = message.payload
        workflow, run_id = payload["workflow_id"], payload["run_id"]
        if not await self._link.is_closed(workflow, run_id):
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, "the run has not closed yet")
        events = await self._link.sealed_history(workflow, run_id)
        now = self._clock.now()
        last = int(events[-1]["eventId"])
        export = HistoryExport(
            tenant=message.tenant,
            connection_id=payload["connection_id"],
            workflow_id=workflow,
            run_id=run_id,
            exported_at=now,
            closed=True,
            last_event_id=last,
            events=events,
        )
        entry = AuditEntry(
            tenant=message.tenant,
            at=now,
            action=AuditAction.HISTORY_EXPORTED,
            object=payload["connection_id"],
            context=RequestContext(by="schedule"),
            detail={"events": last},
            provenance=Provenance(workflow_id=workflow, run_id=run_id, event_id=last),
        )
        async with self._store.write() as tx:
            if await tx.connections.get(message.tenant, payload["connection_id"]) is None:
                return
            await tx.histories.add(export)
            await audit.append(tx, entry)

    async def _mark_delivered(self, ids: Sequence[OutboxId]) -> None:
        """In one transaction. If the process dies before it, they are delivered once more."""
        if not ids:
            return
        async with self._store.write() as tx:
            await tx.outbox.mark_delivered(ids, self._clock.now())
        self._claimed.difference_update(ids)

    async def _postpone(self, message: OutboxMessage, error: str) -> None:
        wait = min(_FIRST_RETRY * 2 ** min(message.attempts, 10), _LONGEST_RETRY)
        if message.kind is OutboxKind.EXPORT_HISTORY and message.attempts < 10:
            wait = _FIRST_RETRY / 4  # the run is just closing
        async with self._store.write() as tx:
            await tx.outbox.postpone(message.id, error, self._clock.now() + wait)
        self._claimed.discard(message.id)


def _delivered_as_one(batch: Sequence[OutboxMessage]) -> Collection[Sequence[OutboxMessage]]:
    """The messages, those together that one delivery does for: of the wakes of a webhook the first that is to
    be heard at once, else the first. One that isn't delivered is claimed again with the others."""
    together: dict[tuple[str, ...], list[OutboxMessage]] = {}
    for message in sorted(batch, key=lambda message: not message.payload.get("at_once", False)):
        is_wake = message.kind is OutboxKind.WAKE_WEBHOOK
        key = (message.tenant, str(message.payload["webhook_id"])) if is_wake else (message.id,)
        together.setdefault(key, []).append(message)
    return together.values()


def _log_stuck(error: Exception) -> None:
    if isinstance(error, Failure):
        log_event(log, logging.WARNING, LogEvent.OUTBOX_STUCK, code=error.code)
    else:  # only the class: the text may quote a secret
        log_event(log, logging.ERROR, LogEvent.OUTBOX_STUCK, type(error).__name__, code=ErrorCode.INTERNAL)


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and await their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _request_context(message: OutboxMessage) -> RequestContext | None:
    """The context of the request that wrote the message."""
    context = message.payload.get("context")
    return RequestContext.model_validate(context) if context else None
