"""Deliveries to webhooks: signed (Standard Webhooks), sent through the guard, their outcome written."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx2
from temporalio import activity

from activities.heartbeat import heartbeats
from activities.records import settled
from evergrant_server import audit
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import ActivityName, Asked
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_messages import DeliverDue, DeliveryRound
from evergrant_server.core.webhooks import Delivery, Problem, Webhook, problem_of, signed_headers
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Tx
from providers.times import retry_after

ANSWER_TIME = 15.0  # seconds, for the whole exchange
ROUND = 20  # deliveries; a round ends well inside its time-out, however slow the receiver
AT_ONCE = 4  # deliveries to one endpoint at the same time
ROUNDS_AT_ONCE = 20  # in one worker: slow receivers must not take the places that refreshes need
_BUSY_WAIT = timedelta(seconds=5)
_LEAST_WAIT_S = 1.0  # after a round that had nothing to send

_BY_ITSELF = Asked(by="schedule")


@dataclass(frozen=True)
class _Order:
    """What a round has in hand: everything is read before the first byte is sent."""

    webhook: Webhook
    secrets: tuple[Secret, ...]
    due: list[tuple[Delivery, str]]  # with the body


@dataclass(frozen=True)
class _Outcome:
    status: int | None
    problem: Problem | None  # None: delivered
    retry_after: float | None = None


class WebhookActivities:
    """Sends rounds. `give_up_after`: an endpoint that fails for longer is disabled."""

    def __init__(
        self, store: Store, egress: Egress, clock: Clock, *, give_up_after: timedelta, retention: timedelta
    ) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock
        self._give_up_after = give_up_after
        self._retention = retention
        self._under_way = 0

    @activity.defn(name=ActivityName.DELIVER_DUE)
    async def deliver_due(self, order: DeliverDue) -> DeliveryRound:
        """Send what is due, a bounded number of it; says what came of it and when to look again.

        The first one goes alone: an endpoint that is down costs one call a round.
        """
        if self._under_way >= ROUNDS_AT_ONCE:
            wait_s = _BUSY_WAIT.total_seconds()
            return DeliveryRound(next_at=self._clock.now() + _BUSY_WAIT, paused=True, wait_s=wait_s)
        self._under_way += 1
        try:
            async with heartbeats():
                return await self._round(order)
        finally:
            self._under_way -= 1

    async def _round(self, order: DeliverDue) -> DeliveryRound:
        ready = await self._ready(order)
        if ready is None:
            return DeliveryRound()
        outcomes = [await self._deliver(ready, it) for it in ready.due[:1]]
        if outcomes and outcomes[0].problem is None:
            turns = asyncio.Semaphore(AT_ONCE)
            outcomes += await asyncio.gather(*(self._in_turn(turns, ready, it) for it in ready.due[1:]))
        if outcomes:
            await self._note_health(ready.webhook, outcomes)
        return await self._said(order, outcomes)

    async def _ready(self, order: DeliverDue) -> _Order | None:
        now = self._clock.now()
        async with self._store.read() as tx:
            webhook = await tx.webhooks.get(order.tenant, order.webhook_id)
            if webhook is None or webhook.disabled:
                return None
            due = await tx.deliveries.due(webhook, now, ROUND, by_hand=True)
            if not webhook.paused(now):
                due += await tx.deliveries.due(webhook, now, ROUND - len(due), by_hand=False)
            if webhook.failures:
                due = due[:1]
            bodies = [await self._body(tx, it) for it in due]
            secrets = await tx.webhooks.secrets(webhook, now)
        return _Order(webhook, secrets, list(zip(due, bodies, strict=True)))

    @staticmethod
    async def _body(tx: Tx, delivery: Delivery) -> str:
        event = await tx.deliveries.event(delivery.tenant, delivery.event_id)
        if event is None:
            raise Failure(Code.INTERNAL, f"the event of {delivery.id} is gone")
        return event.body

    async def _in_turn(self, turns: asyncio.Semaphore, ready: _Order, one: tuple[Delivery, str]) -> _Outcome:
        async with turns:
            return await self._deliver(ready, one)

    async def _deliver(self, ready: _Order, one: tuple[Delivery, str]) -> _Outcome:
        delivery, body = one
        outcome = await self._sent(ready, delivery, body)
        metrics.webhook_tried(outcome.problem)

        async def write(tx: Tx) -> None:
            now = self._clock.now()
            current = await tx.deliveries.get(delivery.tenant, delivery.id)
            if current is None or current.revision != delivery.revision:
                return  # it was deleted, or is to be sent again by hand: this try says nothing about that
            if outcome.problem is None and outcome.status is not None:
                after = current.delivered(outcome.status, now)
            else:
                after = current.missed(outcome.status, str(outcome.problem), now)
            await tx.deliveries.replace(after, expected=current.revision)

        await settled(self._store, write)
        return outcome

    async def _sent(self, ready: _Order, delivery: Delivery, body: str) -> _Outcome:
        """One try. The receiver's words are read to the limit and dropped: only the status is kept."""
        headers = signed_headers(ready.secrets, delivery.event_id, self._clock.now(), body)
        headers |= {"content-type": "application/json", "user-agent": "Evergrant"}
        try:
            async with self._egress.client() as client:
                answer = await client.post(ready.webhook.url, content=body.encode(), headers=headers)
        except Failure as failure:
            refused = failure.code is Code.EGRESS_REFUSED
            return _Outcome(None, Problem.EGRESS_REFUSED if refused else Problem.UNREADABLE)
        except httpx2.TimeoutException:
            return _Outcome(None, Problem.TIMED_OUT)
        except httpx2.RequestError:
            return _Outcome(None, Problem.UNREACHABLE)
        wait = retry_after(dict(answer.headers)) if answer.status_code in (429, 503) else None
        return _Outcome(answer.status_code, problem_of(answer.status_code), wait)

    async def _note_health(self, webhook: Webhook, outcomes: list[_Outcome]) -> None:
        """What the round says of the endpoint as a whole; one delivery that gets through is enough."""
        gone = any(it.problem is Problem.GONE for it in outcomes)
        works = any(it.problem is None for it in outcomes)
        wait = max((it.retry_after or 0 for it in outcomes), default=0) or None

        async def note(tx: Tx) -> None:
            now = self._clock.now()
            current = await tx.webhooks.get(webhook.tenant, webhook.id)
            if current is None or current.disabled or current.url != webhook.url:
                return  # what the old URL did is not held against the new one
            if gone:
                after = current.gone()
            elif works:
                after = current.got_through()
            else:
                after = current.failed(now, wait, self._give_up_after)
            if after != current:
                await tx.webhooks.replace(after, expected=current.revision)
            if after.disabled:
                await self._record_disabled(tx, after, now)

        await settled(self._store, note)

    async def _record_disabled(self, tx: Tx, webhook: Webhook, now: datetime) -> None:
        detail = {"webhook": webhook.name, "why": webhook.disabled_by, "failures": webhook.failures}
        entry = AuditEntry(
            tenant=webhook.tenant,
            at=now,
            action=AuditAction.WEBHOOK_DISABLED,
            object=webhook.id,
            asked=_BY_ITSELF,
            detail=detail,
        )
        await audit.append(tx, entry)

    async def _said(self, order: DeliverDue, outcomes: list[_Outcome]) -> DeliveryRound:
        """When the next round makes sense; old deliveries go on the way."""
        now = self._clock.now()
        async with self._store.write() as tx:
            await tx.deliveries.prune(order.tenant, order.webhook_id, now - self._retention)
            webhook = await tx.webhooks.get(order.tenant, order.webhook_id)
            waits = webhook is not None and not webhook.disabled
            by_hand = await tx.deliveries.next_at(webhook, by_hand=True) if webhook and waits else None
            rest = await tx.deliveries.next_at(webhook, by_hand=False) if webhook and waits else None
        if webhook is not None and rest is not None and webhook.paused_until is not None:
            rest = max(rest, webhook.paused_until)
        moments = [it for it in (by_hand, rest) if it is not None]
        delivered = sum(it.problem is None for it in outcomes)
        next_at = min(moments, default=None)
        wait_s = None if next_at is None else max((next_at - now).total_seconds(), 0.0)
        if wait_s is not None and not outcomes:
            wait_s = max(wait_s, _LEAST_WAIT_S)
        return DeliveryRound(
            delivered=delivered,
            failed=len(outcomes) - delivered,
            next_at=next_at,
            wait_s=wait_s,
            paused=webhook is not None and webhook.paused(now) and by_hand is None,
        )
