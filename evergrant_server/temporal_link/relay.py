"""The relay: takes the outbox to Temporal, at least once and in order per workflow."""

import asyncio
import logging
import secrets
from contextlib import suppress
from datetime import timedelta

from evergrant_server import audit
from evergrant_server import telemetry_metrics as metrics
from evergrant_server import telemetry_traces as traces
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import WORKFLOW_ID, ConnectionId, Tenant
from evergrant_server.core.messages import Asked, ConnectionStart, ExportStart, Provenance
from evergrant_server.core.onboarding import OnboardingStart
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.core.pushing import PushRequest
from evergrant_server.core.receivers import FetchKeys
from evergrant_server.core.webhook_messages import WakeWebhook
from evergrant_server.store import HistoryExport, Store
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event
from evergrant_server.temporal_link.calling import WorkflowGone
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.reconcile import Reconciler, Revival

log = logging.getLogger("evergrant.relay")

_HOLD = timedelta(seconds=30)  # a claim whose relay died is free again after this
_BATCH = 50
_SOON = timedelta(seconds=1)
_LONGEST = timedelta(minutes=5)
_MEASURE_S = 5.0


class OutboxRelay:
    """Run any number of them: a message is claimed before it is delivered."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        reconciler: Reconciler,
        clock: Clock,
        interval: timedelta = _SOON,
    ) -> None:
        self._store = store
        self._link = link
        self._reconciler = reconciler
        self._clock = clock
        self._interval = interval.total_seconds()
        self._name = f"relay-{secrets.token_hex(4)}"
        self._work = asyncio.Event()
        self._measured = -_MEASURE_S

    def nudge(self) -> None:
        """Say that a message was committed, so that nobody waits for the next look."""
        self._work.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._work.clear()
            await self._measure()
            if await self.deliver() == 0:
                # not wait_for: before Python 3.12 it loses a cancellation that comes with a nudge
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._work.wait()

    async def _measure(self) -> None:
        """Say how much waits and for how long; every few seconds, for it costs a query."""
        if self._loop_time() < self._measured + _MEASURE_S:
            return
        self._measured = self._loop_time()
        now = self._clock.now()
        with suppress(Failure):  # the next round says that the store is away
            async with self._store.read() as tx:
                depth, oldest = await tx.outbox.depth(now), await tx.outbox.oldest()
            metrics.outbox_seen(depth, (now - oldest).total_seconds() if oldest else 0)

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    async def deliver(self) -> int:
        """One round; says how many messages were claimed."""
        try:
            async with self._store.write() as tx:
                batch = await tx.outbox.claim(self._name, self._clock.now(), _HOLD, _BATCH)
            for message in batch:
                await self._deliver(message)
            return len(batch)
        except Failure as failure:
            say(log, logging.WARNING, Event.OUTBOX_STUCK, code=failure.code)
        except Exception as unexpected:  # a relay that ends is missed by nobody until much waits
            say(log, logging.ERROR, Event.OUTBOX_STUCK, type(unexpected).__name__, code=Code.INTERNAL)
        return 0

    async def _deliver(self, message: OutboxMessage) -> None:
        """Hand one message over or put it off; what is wrong with it is not in others' way."""
        try:
            await self._try(message)
        except Failure as failure:
            await self._postpone(message, failure.code)
        except Exception as unexpected:
            # its text may quote anything: only the kind is kept
            await self._postpone(message, f"{Code.INTERNAL}: {type(unexpected).__name__}")

    async def _try(self, message: OutboxMessage) -> None:
        try:
            with traces.following(_asked(message)):
                await self._hand_over(message)
        except WorkflowGone:
            await self._gone(message)
        else:
            await self._done(message)

    async def _gone(self, message: OutboxMessage) -> None:
        """Its run has closed, or Temporal has lost it: the store says which, and decides."""
        match = WORKFLOW_ID.match(message.target)
        revival = Revival.ENDED
        if match is not None:
            tenant, connection = Tenant(match["tenant"]), ConnectionId(match["connection"])
            revival = await self._reconciler.revive(tenant, connection)
        if revival is Revival.ENDED:
            what = f"{message.kind} {message.name}"
            say(log, logging.INFO, Event.MESSAGE_TOO_LATE, what, object=message.target)
            await self._done(message)
        else:  # whoever started it: it hasn't heard this, and to hear it twice does no harm
            await self._postpone(message, "its workflow runs again")

    async def _hand_over(self, message: OutboxMessage) -> None:
        match message.kind:
            case OutboxKind.START_WORKFLOW:
                await self._link.start_connection(ConnectionStart.model_validate(message.payload))
            case OutboxKind.SIGNAL:
                await self._link.signal(message.target, message.name, message.payload)
            case OutboxKind.START_EXPORT:
                await self._link.start_export(ExportStart.model_validate(message.payload))
            case OutboxKind.WAKE_WEBHOOK:
                await self._link.wake_webhook(WakeWebhook.model_validate(message.payload))
            case OutboxKind.START_ONBOARDING:
                await self._link.start_onboarding(OnboardingStart.model_validate(message.payload))
            case OutboxKind.FETCH_KEYS:
                await self._link.fetch_keys(FetchKeys.model_validate(message.payload))
            case OutboxKind.PUSH_REQUEST:
                await self._link.push_request(PushRequest.model_validate(message.payload))
            case OutboxKind.EXPORT_HISTORY:
                await self._export(message)

    async def _export(self, message: OutboxMessage) -> None:
        """Keep a closed run's history in the store, with an audit record that says so."""
        payload = message.payload
        workflow, run_id = payload["workflow_id"], payload["run_id"]
        if not await self._link.is_closed(workflow, run_id):
            raise Failure(Code.TEMPORAL_UNAVAILABLE, "the run has not closed yet")
        events = await self._link.history(workflow, run_id)
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
            asked=Asked(by="schedule"),
            detail={"events": last},
            provenance=Provenance(workflow_id=workflow, run_id=run_id, event_id=last),
        )
        async with self._store.write() as tx:
            await tx.histories.add(export)
            await audit.append(tx, entry)

    async def _done(self, message: OutboxMessage) -> None:
        async with self._store.write() as tx:
            await tx.outbox.delivered(message.id, self._clock.now())

    async def _postpone(self, message: OutboxMessage, error: str) -> None:
        wait = min(_SOON * 2 ** min(message.attempts, 10), _LONGEST)
        if message.kind is OutboxKind.EXPORT_HISTORY and message.attempts < 10:
            wait = _SOON / 4  # the run is just closing
        async with self._store.write() as tx:
            await tx.outbox.postpone(message.id, error, self._clock.now() + wait)


def _asked(message: OutboxMessage) -> Asked | None:
    """Who wrote the message, and in which trace."""
    asked = message.payload.get("asked")
    return Asked.model_validate(asked) if asked else None
