"""One round after the other, on a clock that is set: how much an endpoint gets, when, signed by what."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update
from standardwebhooks import Webhook as Judge
from temporalio.testing import ActivityEnvironment

from activities.webhooks import (
    CONCURRENT_DELIVERIES,
    CONCURRENT_ROUNDS,
    ROUND_SIZE,
    WebhookDeliveryActivities,
)
from evergrant_server import audit
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.events import EventType, WebhookEvent
from evergrant_server.core.ids import EventId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import DeliverWebhooks, DeliveryRound
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import new_signing_secret
from evergrant_server.core.webhooks import DeliveryProblem, DeliveryStatus, DisabledBy, Webhook
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.egress.transport import BODY_LIMIT
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.store.webhooks import EventRow, WebhookRow
from tests.fakes.clock import SetClock
from tests.fakes.events.webhook_receiver import SECRET, TENANT, Received, Receiver, listening, log_of, reread
from tests.fakes.failures import fails

ASKED = RequestContext(by="app:boss")
GIVE_UP, RETENTION = timedelta(days=5), timedelta(days=30)


class Rounds:
    """A webhook, and the activity that its workflow would call."""

    def __init__(self, where: Store, at: SetClock, receiver: Receiver, webhook: Webhook) -> None:
        self.store, self.clock, self.receiver, self.webhook = where, at, receiver, webhook
        self.allow = (receiver.allowance,)

    async def tell(self, count: int = 1, *, by_hand: bool = False) -> None:
        for _ in range(count):
            event = WebhookEvent(
                tenant=TENANT,
                id=EventId(new_id("evt")),
                type=EventType.PING,
                connection_id=None,
                at=self.clock.now(),
                body='{"type":"webhook.ping"}',
            )
            async with self.store.write() as tx:
                await audit.write_event(tx, [self.webhook], event, ASKED, event.at, by_hand=by_hand)

    def activities(self, **limits: Any) -> WebhookDeliveryActivities:
        return WebhookDeliveryActivities(
            self.store,
            Egress(EgressPolicy(allow=self.allow), **limits),
            self.clock,
            give_up_after=GIVE_UP,
            retention=RETENTION,
        )

    async def round(self, **limits: Any) -> DeliveryRound:
        order = DeliverWebhooks(tenant=TENANT, webhook_id=self.webhook.id)
        return await ActivityEnvironment().run(self.activities(**limits).deliver_due, order)

    async def row(self) -> Webhook:
        return await reread(self.store, self.webhook)


def signed_by(message: Received, *secrets: Secret) -> bool:
    """Are the signatures by exactly these, as the Standard Webhooks package would sign?"""
    at = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)
    expected = [Judge(it.reveal()).sign(message.id, at, message.body.decode()) for it in secrets]
    return message.headers["webhook-signature"].split() == expected


@pytest_asyncio.fixture
async def rounds(store: Store, clock: SetClock) -> AsyncIterator[Rounds]:
    async with Receiver() as receiver:
        webhook = await listening(store, receiver.url, clock.now())
        yield Rounds(store, clock, receiver, webhook)


async def test_a_round_and_its_concurrency_are_bounded(rounds: Rounds):
    async def slowly(message: Received) -> int:
        await asyncio.sleep(0.02)
        return 204

    rounds.receiver.answer = slowly
    await rounds.tell(ROUND_SIZE + 5)
    first = await rounds.round()
    assert (first.delivered, first.failed) == (ROUND_SIZE, 0)
    assert first.next_at is not None
    assert first.next_at <= rounds.clock.now(), "the rest is due at once"
    second = await rounds.round()
    assert (second.delivered, second.next_at) == (5, None)
    assert 2 <= rounds.receiver.most_at_once <= CONCURRENT_DELIVERIES
    assert len({it.id for it in rounds.receiver.received}) == ROUND_SIZE + 5


async def test_waits_are_computed_by_the_injected_clock(rounds: Rounds):
    """Temporal's clock may be an hour ahead: the next moment is over there, and not here."""
    await rounds.tell(ROUND_SIZE + 1)
    assert (await rounds.round()).wait_s == 0, "the rest is due at once"
    assert (await rounds.round()).wait_s is None
    rounds.receiver.answer = 503
    await rounds.tell(1)
    failed = await rounds.round()
    assert failed.next_at is not None
    assert failed.wait_s == (failed.next_at - rounds.clock.now()).total_seconds() > 0
    early = await rounds.round()
    assert (early.failed, early.wait_s) == (0, failed.wait_s)
    rounds.clock.advance(failed.wait_s - 0.001)
    nearly = await rounds.round()
    assert (nearly.failed, nearly.wait_s) == (0, 1.0), "no round without a pause, unless it was a full one"


async def test_an_endpoint_that_is_down_costs_one_call_a_round_however_much_waits(rounds: Rounds):
    rounds.receiver.answer = 503
    await rounds.tell(12)
    calls = 0
    for _ in range(8):
        done = await rounds.round()
        calls += 1
        assert (done.failed, done.paused) == (1, True)
        assert done.next_at is not None
        again = await rounds.round()
        assert (again.failed, again.next_at) == (0, done.next_at), "left alone until then"
        rounds.clock.advance((done.next_at - rounds.clock.now()).total_seconds())
    assert len(rounds.receiver.received) == calls
    rounds.receiver.answer = 204
    done = await rounds.round()
    assert (done.delivered, (await rounds.row()).failures) == (1, 0), "the first one goes alone"
    while (await rounds.round()).delivered:
        pass
    assert all(it.status == "delivered" or it.next_at for it in await log_of(rounds.store, rounds.webhook))


async def test_an_event_that_always_fails_blocks_no_other(rounds: Rounds):
    await rounds.tell(1)
    (poison,) = await log_of(rounds.store, rounds.webhook)
    await rounds.tell(5)

    async def choke(message: Received) -> int:
        return 500 if message.id == poison.event_id else 204

    rounds.receiver.answer = choke
    for _ in range(12):
        done = await rounds.round()
        if done.next_at is not None:
            wait = (done.next_at - rounds.clock.now()).total_seconds()
            rounds.clock.advance(max(wait, 0))
    log = await log_of(rounds.store, rounds.webhook)
    assert [it.status for it in log if it.id != poison.id] == [DeliveryStatus.DELIVERED] * 5


async def test_a_ping_is_sent_during_a_pause_and_before_the_backlog(rounds: Rounds):
    rounds.receiver.script(500)
    await rounds.tell(3)
    assert (await rounds.round()).paused
    await rounds.tell(by_hand=True)
    (ping,) = [it for it in await log_of(rounds.store, rounds.webhook) if it.by_hand]
    done = await rounds.round()
    assert (done.delivered, rounds.receiver.received[-1].id) == (1, ping.event_id)
    assert not done.paused, "it got through, so the endpoint works"


async def test_the_old_secret_signs_during_its_overlap_and_not_after(rounds: Rounds):
    new = new_signing_secret(b"n" * 32)
    overlap = timedelta(minutes=2)
    async with rounds.store.write() as tx:
        rotated = rounds.webhook.model_copy(update={"previous_secret_until": rounds.clock.now() + overlap})
        await tx.webhooks.rotate_secret(rotated, new, expected=1)
    moment = rounds.clock.now()

    async def sent_at(after: timedelta) -> Received:
        rounds.clock.advance((moment + after - rounds.clock.now()).total_seconds())
        await rounds.tell()
        await rounds.round()
        return rounds.receiver.received[-1]

    during, after = await sent_at(timedelta(minutes=1)), await sent_at(overlap)
    assert signed_by(during, new, SECRET)
    assert signed_by(after, new)


@pytest.mark.parametrize(
    ("limits", "body", "problem"),
    [
        ({"answer_timeout_s": 0.2}, b"", DeliveryProblem.TIMED_OUT),
        ({}, b"x" * (BODY_LIMIT + 1), DeliveryProblem.UNREADABLE),
    ],
    ids=["a receiver that never answers", "an answer without end"],
)
async def test_a_hostile_receiver_is_cut_off(
    rounds: Rounds, limits: dict[str, Any], body: bytes, problem: DeliveryProblem
):
    if not body:
        rounds.receiver.answer = lambda message: asyncio.sleep(60, 204)
    else:
        rounds.receiver.answer, rounds.receiver.answer_body = 200, body
    await rounds.tell()
    await rounds.round(**limits)
    (delivery,) = await log_of(rounds.store, rounds.webhook)
    assert (delivery.problem, delivery.response_status) == (problem, None)


async def test_a_name_that_rebinds_after_registration_is_not_followed(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
):
    """The name was public when the webhook was made; now it leads to loopback, where the receiver listens."""
    port = int(rounds.receiver.allowance.rpartition(":")[2])
    async with rounds.store.write() as tx:
        await tx.webhooks.replace_with_url(rounds.webhook, "https://rebinding.example:8443/in", expected=1)
    asked: list[str] = []

    async def resolve(host: str, _: int, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    await rounds.tell()
    await rounds.round()
    (delivery,) = await log_of(rounds.store, rounds.webhook)
    assert (asked, delivery.problem) == (["rebinding.example"], DeliveryProblem.EGRESS_REFUSED)
    assert rounds.receiver.received == []


async def test_slow_receivers_take_a_bounded_share_of_a_worker_and_leave_others_theirs(rounds: Rounds):
    """A worker has a hundred places, which refreshes and other tenants' webhooks need too."""
    hold = asyncio.Event()

    async def held(message: Received) -> int:
        await hold.wait()
        return 204

    rounds.receiver.answer = held
    await rounds.tell()
    activities = rounds.activities()
    order = DeliverWebhooks(tenant=TENANT, webhook_id=rounds.webhook.id)
    share = CONCURRENT_ROUNDS // 3 + 1  # of one webhook
    slow = [
        asyncio.create_task(ActivityEnvironment().run(activities.deliver_due, order)) for _ in range(share)
    ]
    await rounds.receiver.until_busy(share)
    another = order.model_copy(update={"tenant": Tenant("other")})
    assert not (await ActivityEnvironment().run(activities.deliver_due, another)).paused
    refused = await ActivityEnvironment().run(activities.deliver_due, order)
    assert (refused.paused, refused.delivered, refused.failed) == (True, 0, 0)
    assert refused.next_at is not None
    assert refused.next_at > rounds.clock.now()
    hold.set()
    await asyncio.gather(*slow)
    assert (await ActivityEnvironment().run(activities.deliver_due, order)).next_at is None


async def test_a_new_url_starts_without_the_old_ones_failures(rounds: Rounds):
    async def moved_meanwhile(message: Received) -> int:
        async with rounds.store.write() as tx:
            later = rounds.webhook.changed_at + timedelta(seconds=1)
            after = rounds.webhook.model_copy(update={"changed_at": later})
            await tx.webhooks.replace_with_url(after, f"{rounds.receiver.url}&again=1", expected=1)
        return 410

    rounds.receiver.answer = moved_meanwhile
    await rounds.tell()
    await rounds.round()
    row = await rounds.row()
    assert (row.disabled, row.failures) == (False, 0)


async def test_a_replay_requested_during_a_delivery_is_sent(rounds: Rounds):
    await rounds.tell()
    (delivery,) = await log_of(rounds.store, rounds.webhook)

    async def replayed_meanwhile(message: Received) -> int:
        async with rounds.store.write() as tx:
            await tx.deliveries.replace(delivery.replayed(rounds.clock.now()), expected=1)
        return 204

    rounds.receiver.answer = replayed_meanwhile
    await rounds.round()
    rounds.receiver.answer = 204
    assert (await rounds.round()).delivered == 1
    first, second = rounds.receiver.received
    assert first.id == second.id


async def test_old_deliveries_are_deleted(rounds: Rounds):
    await rounds.tell(3)
    await rounds.round()
    rounds.clock.advance(RETENTION.total_seconds() + 1)
    await rounds.tell()
    await rounds.round()
    assert len(await log_of(rounds.store, rounds.webhook)) == 1


@pytest.mark.parametrize("changed", ["url", "events", "disabled_by"])
async def test_a_webhook_that_another_hand_changed_gets_nothing(rounds: Rounds, changed: str):
    """Its sealed query is opened for the address that an admin put, and for no other."""
    await rounds.tell()
    async with Receiver() as evil:
        values = {"url": f"{evil.origin}/hooks?***", "events": ["connection.created"], "disabled_by": None}
        if changed == "disabled_by":
            off = rounds.webhook.model_copy(update={"disabled_by": DisabledBy.ADMIN})
            async with rounds.store.write() as tx:
                await tx.webhooks.replace(off, expected=rounds.webhook.revision)
        async with rounds.store.write() as tx:
            await tx.connection.execute(update(WebhookRow).values({changed: values[changed]}))
        assert await rounds.round() == DeliveryRound()
        assert [*evil.received, *rounds.receiver.received] == []
    assert [it.row for it in await broken_configuration(rounds.store)] == [rounds.webhook.id]


async def test_an_event_that_another_hand_wrote_is_not_signed(rounds: Rounds):
    await rounds.tell()
    async with rounds.store.write() as tx:
        await tx.connection.execute(update(EventRow).values(body='{"type":"connection.revoked"}'))
    with fails(ErrorCode.AUTHORITY_BROKEN, "event"):
        await rounds.round()
    assert rounds.receiver.received == []
