"""Delivers events to webhooks: signed (Standard Webhooks), sent through the egress guard.

`core.webhooks` signs it, and decides when it is tried again; the workflow waits for that.
"""

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx2
from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.bounded_concurrency import FairTurns
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import DeliverWebhooks, DeliveryRound
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import signed_headers
from evergrant_server.core.webhooks import Delivery, DeliveryProblem, Webhook, delivery_problem
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.responses.raw_reply import retry_after

ANSWER_TIMEOUT_S = 15.0  # for the whole exchange
ROUND_SIZE = 20  # deliveries; with the slowest receiver a round still ends within its timeout
CONCURRENT_DELIVERIES = 4  # to one endpoint
CONCURRENT_ROUNDS = 20  # in one worker: slow receivers must not take the slots that refreshes need; one
# tenant's take half of these
_BUSY_WAIT_S = (4.0, 12.0)  # spread: those that were refused together don't all ask again together
_LEAST_WAIT_S = 1.0  # after a round that had nothing to send

_SCHEDULE_CONTEXT = RequestContext(by="schedule")


@dataclass(frozen=True)
class _DeliveryBatch:
    """Everything that a round needs, read before the first byte is sent."""

    webhook: Webhook
    url: Secret  # with its query
    secrets: tuple[Secret, ...]
    due: list[tuple[Delivery, str]]  # each with the event's body


@dataclass(frozen=True)
class _DeliveryOutcome:
    status: int | None
    problem: DeliveryProblem | None  # None: delivered
    retry_after: float | None = None


class WebhookDeliveryActivities:
    """Sends rounds of deliveries. A webhook whose endpoint fails for `give_up_after` is disabled."""

    def __init__(
        self, store: Store, egress: Egress, clock: Clock, *, give_up_after: timedelta, retention: timedelta
    ) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock
        self._give_up_after = give_up_after
        self._retention = retention
        self._rounds = FairTurns(CONCURRENT_ROUNDS)

    @activity.defn(name=jobs.DELIVER_WEBHOOKS.name)
    async def deliver_due(self, request: DeliverWebhooks) -> DeliveryRound:
        """Send a bounded number of due deliveries. Returns the counts and when to look again.

        The first one is sent alone, so an endpoint that is down costs one request per round.
        """
        if not self._rounds.has_turn(request.tenant, request.webhook_id):
            wait_s = random.uniform(*_BUSY_WAIT_S)
            next_at = self._clock.now() + timedelta(seconds=wait_s)
            return DeliveryRound(next_at=next_at, paused=True, wait_s=wait_s)
        async with self._rounds.turn(request.tenant, request.webhook_id), heartbeating():
            return await self._deliver_round(request)

    async def _deliver_round(self, request: DeliverWebhooks) -> DeliveryRound:
        batch = await self._load_batch(request)
        if batch is None:
            return DeliveryRound()
        outcomes = [await self._deliver(batch, *due) for due in batch.due[:1]]
        if outcomes and outcomes[0].problem is None:
            semaphore = asyncio.Semaphore(CONCURRENT_DELIVERIES)

            async def deliver(delivery: Delivery, body: str) -> _DeliveryOutcome:
                async with semaphore:
                    return await self._deliver(batch, delivery, body)

            outcomes += await asyncio.gather(*(deliver(*due) for due in batch.due[1:]))
        if outcomes:
            await self._update_health(batch.webhook, outcomes)
        return await self._round_result(request, outcomes)

    async def _load_batch(self, request: DeliverWebhooks) -> _DeliveryBatch | None:
        now = self._clock.now()
        async with self._store.read() as tx:
            try:
                webhook = await tx.webhooks.get(request.tenant, request.webhook_id)
            except Failure as failure:
                if failure.code is not ErrorCode.AUTHORITY_BROKEN:
                    raise
                report_broken_authority(failure)  # an admin puts or deletes it: until then nothing is sent
                return None
            if webhook is None or webhook.disabled:
                return None
            due = await tx.deliveries.due(webhook, now, ROUND_SIZE, by_hand=True)
            if not webhook.paused(now):
                due += await tx.deliveries.due(webhook, now, ROUND_SIZE - len(due), by_hand=False)
            if webhook.failures:
                due = due[:1]
            bodies = [await self._body(tx, delivery) for delivery in due]
            secrets = await tx.webhooks.signing_secrets(webhook, now)
            url = await tx.webhooks.whole_url(webhook)
        return _DeliveryBatch(webhook, url, secrets, list(zip(due, bodies, strict=True)))

    @staticmethod
    async def _body(tx: Transaction, delivery: Delivery) -> str:
        event = await tx.deliveries.event(delivery.tenant, delivery.event_id)
        if event is None:
            raise Failure(ErrorCode.INTERNAL, f"the event of {delivery.id} is gone")
        return event.body

    async def _deliver(self, batch: _DeliveryBatch, delivery: Delivery, body: str) -> _DeliveryOutcome:
        outcome = await self._post(batch, delivery, body)
        metrics.count(metrics.DELIVERIES, outcome.problem or "delivered")

        async def write(tx: Transaction) -> None:
            now = self._clock.now()
            current = await tx.deliveries.get(delivery.tenant, delivery.id)
            if current is None or current.revision != delivery.revision:
                return  # deleted, or an admin has requested a replay meanwhile
            if outcome.problem is None and outcome.status is not None:
                after = current.delivered(outcome.status, now)
            else:
                after = current.failed(outcome.status, str(outcome.problem), now)
            await tx.deliveries.replace(after, expected=current.revision)

        await commit_with_retries(self._store, write)
        return outcome

    async def _post(self, batch: _DeliveryBatch, delivery: Delivery, body: str) -> _DeliveryOutcome:
        """Attempt one delivery. The response's body is dropped; only the status is kept."""
        headers = signed_headers(batch.secrets, delivery.event_id, self._clock.now(), body)
        headers |= {"content-type": "application/json", "user-agent": "Evergrant"}
        try:
            async with self._egress.client() as client:
                answer = await client.post(batch.url.reveal(), content=body.encode(), headers=headers)
        except Failure as failure:
            refused = failure.code is ErrorCode.EGRESS_REFUSED
            return _DeliveryOutcome(
                None, DeliveryProblem.EGRESS_REFUSED if refused else DeliveryProblem.UNREADABLE
            )
        except httpx2.TimeoutException:
            return _DeliveryOutcome(None, DeliveryProblem.TIMED_OUT)
        except httpx2.RequestError:
            return _DeliveryOutcome(None, DeliveryProblem.UNREACHABLE)
        wait = retry_after(dict(answer.headers)) if answer.status_code in (429, 503) else None
        return _DeliveryOutcome(answer.status_code, delivery_problem(answer.status_code), wait)

    async def _update_health(self, webhook: Webhook, outcomes: list[_DeliveryOutcome]) -> None:
        """Update the webhook's failures from the round; one successful delivery resets them."""
        gone = any(outcome.problem is DeliveryProblem.GONE for outcome in outcomes)
        works = any(outcome.problem is None for outcome in outcomes)
        wait = max((outcome.retry_after or 0 for outcome in outcomes), default=0) or None

        async def update(tx: Transaction) -> None:
            now = self._clock.now()
            current = await tx.webhooks.get(webhook.tenant, webhook.id)
            if current is None or current.disabled or current.changed_at != webhook.changed_at:
                return  # the outcomes may be of another URL
            if gone:
                after = current.disabled_as_gone()
            elif works:
                after = current.succeeded()
            else:
                after = current.failed(now, wait, self._give_up_after)
            if after != current:
                await tx.webhooks.replace(after, expected=current.revision)
            if after.disabled:
                await self._record_disabled(tx, after, now)

        await commit_with_retries(self._store, update)

    async def _record_disabled(self, tx: Transaction, webhook: Webhook, now: datetime) -> None:
        detail = {"webhook": webhook.name, "disabled_by": webhook.disabled_by, "failures": webhook.failures}
        entry = AuditEntry(
            tenant=webhook.tenant,
            at=now,
            action=AuditAction.WEBHOOK_DISABLED,
            object=webhook.id,
            context=_SCHEDULE_CONTEXT,
            detail=detail,
        )
        await audit.append(tx, entry)

    async def _round_result(
        self, request: DeliverWebhooks, outcomes: list[_DeliveryOutcome]
    ) -> DeliveryRound:
        """The counts and the time of the next round. Deletes old deliveries on the way."""
        now = self._clock.now()
        replay_at = scheduled_at = None
        async with self._store.write() as tx:
            await tx.deliveries.prune(request.tenant, request.webhook_id, now - self._retention)
            webhook = await tx.webhooks.get(request.tenant, request.webhook_id)
            if webhook is not None and not webhook.disabled:
                replay_at = await tx.deliveries.next_at(webhook, by_hand=True)
                scheduled_at = await tx.deliveries.next_at(webhook, by_hand=False)
        if webhook is not None and scheduled_at is not None and webhook.paused_until is not None:
            scheduled_at = max(scheduled_at, webhook.paused_until)
        delivered = sum(outcome.problem is None for outcome in outcomes)
        next_at = min((at for at in (replay_at, scheduled_at) if at is not None), default=None)
        wait_s = None if next_at is None else max((next_at - now).total_seconds(), 0.0)
        if wait_s is not None and not outcomes:
            wait_s = max(wait_s, _LEAST_WAIT_S)
        return DeliveryRound(
            delivered=delivered,
            failed=len(outcomes) - delivered,
            next_at=next_at,
            wait_s=wait_s,
            paused=webhook is not None and webhook.paused(now) and replay_at is None,
        )
