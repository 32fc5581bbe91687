"""The recurring pass over the store: missing workflows, unexported histories, broken rows and old rows.

Old secrets, delivered messages, attempts, deliveries and responses are deleted in bounded transactions, for
a bounded time; the next pass continues.
"""

import logging
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.histories import HistoryActivities
from activities.support.temporal import heartbeating, last_heartbeat
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.store import Store, Transaction
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link.reconcile import ReconcileCounts, Reconciler

log = logging.getLogger("evergrant.reconcile")

RUN_LIMIT = timedelta(minutes=40)  # less than the schedule's hour, with time for what follows the pass
_OVERLAP = timedelta(minutes=10)  # visibility may have missed a run that closed this long before a pass
_MAX_NAMED = 20

_DELIVERED_AGE = timedelta(days=7)  # delivered outbox messages, which help an operator in a diagnosis
_IDEMPOTENCY_AGE = timedelta(days=1)  # responses to `Idempotency-Key`, which may show a key or a link
# an ended assertion is still known where another process's clock hasn't reached its end
_ENDED_TOKEN_AGE = timedelta(minutes=5)
_ENDED_DELEGATION_AGE = timedelta(days=7)
_ENDED_SESSIONS_AGE = timedelta(days=30)  # sessions of people, for who reviews them
_ENDED_FAMILY_AGE = timedelta(days=30)
_SPENT_AGE = timedelta(days=1)  # codes and access tokens of gateways' clients
_NEVER_USED_AGE, _UNUSED_AGE = timedelta(days=1), timedelta(days=180)  # gateways' clients
_UNUSED_CONSENT_AGE = timedelta(days=90)
# a journal whose host was away for less still finds the attempt of each reply in it, and those that followed
_ATTEMPTS_AGE = timedelta(days=90)
_PRUNE_LIMIT_S = 60.0  # of one pass and one kind of row; in steps of a transaction each
_BROKEN_RECORDED_FOR = timedelta(days=1)  # one record a day for a row that stays broken


class ReconcileActivities:
    """Runs of the pass. A run that is cut or reaches its limit is continued by the next one."""

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        histories: HistoryActivities,
        clock: Clock,
        deliveries_age: timedelta,
        run_limit: timedelta = RUN_LIMIT,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._histories = histories
        self._clock = clock
        self._deliveries_age = deliveries_age
        self._run_limit = run_limit
        self._attempts_seen = datetime.min.replace(tzinfo=UTC)  # closed until then: they were looked at

    @activity.defn(name=jobs.RECONCILE.name)
    async def reconcile(self, request: ReconcileRequest) -> ReconcileResult:
        """Check as many connections as fit into a run, then export histories and prune the store.

        Workflows are queried for their generation only when the store seems to be a backup.
        """
        began = self._clock.now()
        progress = _Progress(last_heartbeat(ReconcileResult) or request.so_far or ReconcileResult())
        async with heartbeating(lambda: progress.result):
            progress.start(await self._should_compare(request, progress.before))
            share = await self._share(progress.before)
            counts = await self._walk(progress, request.walked_to, share)
            exported = await self._histories.request_exports(request.closed_since)
            await prune_store(self._store, self._clock, self._deliveries_age)
            self._attempts_seen = await prune_attempts(self._store, self._clock.now(), self._attempts_seen)
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


async def prune_store(store: Store, clock: Clock, deliveries_age: timedelta) -> None:
    """Delete everything that is over its age. Raises Failure STORE_UNAVAILABLE."""
    now = clock.now()
    async with store.write() as tx:  # client secrets whose overlap has ended
        await tx.integrations.delete_expired_previous_secrets(now)
    await _prune_deliveries(store, now - deliveries_age)
    for prune in (
        _prune_messages,
        _prune_authorizations,
        _prune_clients,
        _prune_sessions,
        _prune_credentials,
    ):
        ends = seconds_since_boot() + _PRUNE_LIMIT_S
        while seconds_since_boot() < ends:
            async with store.write() as tx:
                if await prune(tx, now) == 0:
                    break


async def prune_attempts(store: Store, now: datetime, seen: datetime) -> datetime:
    """Delete attempts that have reached their age since `seen`; returns until when this has looked.

    Each is looked at once by a process, however many are kept: as many as connections at the least. Raises
    Failure STORE_UNAVAILABLE.
    """
    ends = seconds_since_boot() + _PRUNE_LIMIT_S
    while seconds_since_boot() < ends:
        async with store.write() as tx:
            last = await tx.attempts.prune(now - _ATTEMPTS_AGE, seen)
        if last is None:
            break
        seen = last
    return seen


async def _prune_messages(tx: Transaction, now: datetime) -> int:
    deleted = await tx.outbox.prune(now - _DELIVERED_AGE)
    return deleted + await tx.idempotency.prune(now - _IDEMPOTENCY_AGE)


async def _prune_authorizations(tx: Transaction, now: datetime) -> int:
    """Codes, families and tokens of the gateways' clients."""
    deleted = await tx.authorization_codes.prune(now - _SPENT_AGE)
    deleted += await tx.oauth_tokens.prune(now - _SPENT_AGE)
    return deleted + await tx.token_families.prune(now - _ENDED_FAMILY_AGE)


async def _prune_clients(tx: Transaction, now: datetime) -> int:
    """Unused clients; requests, sessions and consents of their people."""
    deleted = await tx.oauth_clients.prune_unused(now - _NEVER_USED_AGE, now - _UNUSED_AGE)
    deleted += await tx.authorization_requests.prune(now)
    deleted += await tx.subject_sessions.prune(now)
    return deleted + await tx.client_consents.prune(now - _UNUSED_CONSENT_AGE)


async def _prune_sessions(tx: Transaction, now: datetime) -> int:
    deleted = await tx.person_logins.prune(now)
    return deleted + await tx.person_sessions.prune(now - _ENDED_SESSIONS_AGE)


async def _prune_credentials(tx: Transaction, now: datetime) -> int:
    deleted = await tx.tokens.prune(now - _ENDED_TOKEN_AGE)
    deleted += await tx.key_sessions.prune(now)
    return deleted + await tx.delegations.prune(now - _ENDED_DELEGATION_AGE)


async def _prune_deliveries(store: Store, before: datetime) -> None:
    """Delete old deliveries of webhooks whose workflow no longer wakes to do so itself."""
    async with store.read() as tx:
        webhooks = await tx.deliveries.webhooks_with_deliveries_before(before)
    for tenant, webhook in webhooks:
        async with store.write() as tx:
            await tx.deliveries.prune(tenant, webhook, before)


async def report_broken_rows(store: Store, now: datetime) -> None:
    """Raise an alarm for each broken row that says who may do what, and record it.

    Apps, permits, integrations, definitions, exports and the ends of audit chains; connections and consents
    are checked where they are used. Raises Failure STORE_UNAVAILABLE.
    """
    for broken in (*await broken_configuration(store), *await audit.broken_heads(store)):
        report_broken_authority(broken.failure)
        async with store.write() as tx:
            last = await audit.newest_record(tx, broken.tenant, broken.row, AuditAction.AUTHORITY_BROKEN)
            if last is not None and last.at > now - _BROKEN_RECORDED_FOR:
                continue
            entry = AuditEntry(
                tenant=broken.tenant,
                at=now,
                action=AuditAction.AUTHORITY_BROKEN,
                object=broken.row,
                context=RequestContext(by="schedule"),
                detail={"table": broken.table},
            )
            await audit.append(tx, entry)
