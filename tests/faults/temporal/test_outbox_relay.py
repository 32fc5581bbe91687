"""One undeliverable message blocks no other and ends no relay."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import connection_workflow_id, webhook_workflow_id
from evergrant_server.store import Store
from evergrant_server.store.database.rows import fetch_all
from evergrant_server.store.outbox import Outbox, OutboxRow, outbox_mac
from evergrant_server.temporal_link import outbox_relay
from evergrant_server.temporal_link.outbox_relay import OutboxRelay
from evergrant_server.temporal_link.runs import NewestRun, WorkflowNotRunning
from evergrant_server.temporal_link.start_requests import StartRequest
from tests.conformance.store.samples import a_message
from tests.fakes.clock import SetClock
from tests.fakes.events.webhook_receiver import a_webhook
from tests.fakes.patience import PATIENCE_S, eventually

TENANT = Tenant("acme")
BAD, GOOD = (connection_workflow_id(TENANT, ConnectionId(new_id("con"))) for _ in range(2))


class Trouble:
    """Stands where link and reconciler stand: what concerns BAD goes wrong as a test says."""

    def __init__(
        self,
        at_signal: Exception | None = None,
        at_revival: Exception | None = None,
        revives: bool | None = None,
    ) -> None:
        self._at_signal, self._at_revival, self._revives = at_signal, at_revival, revives
        self._missed = False
        self.signalled: list[str] = []

    async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
        if target == BAD and not (self._revives and self._missed):
            self._missed = True
            raise self._at_signal or WorkflowNotRunning
        self.signalled.append(target)

    async def usable_run(self, workflow: str) -> NewestRun | None:
        return NewestRun("run", True, None)

    async def start_workflow(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        if self._revives is not None:
            return self._revives
        assert self._at_revival is not None
        raise self._at_revival


class Foreign(Trouble):
    """A workflow of another type runs under the id of BAD, until the connection's own is started."""

    async def usable_run(self, workflow: str) -> NewestRun | None:
        return NewestRun("run", running=self._missed, state=None, is_foreign=not self._missed)

    async def start_workflow(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        self._missed = True
        return await super().start_workflow(tenant, connection_id)


async def put(store: Store, clock: SetClock, target: str) -> None:
    async with store.write() as tx:
        await tx.outbox.add(a_message(target, tenant=TENANT, created_at=clock.now()))


@pytest.mark.parametrize(
    "goes_wrong",
    [
        {"at_signal": ValueError("its text may be a secret")},
        {"at_revival": Failure(ErrorCode.TEMPORAL_UNAVAILABLE)},
    ],
)
async def test_an_undeliverable_message_is_postponed_and_the_next_one_delivered(
    store: Store, clock: SetClock, goes_wrong: dict[str, Any]
):
    trouble = Trouble(**goes_wrong)
    await put(store, clock, BAD)
    await put(store, clock, GOOD)
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    assert await relay.deliver_batch() == 2
    assert trouble.signalled == [GOOD]
    clock.advance(2)
    async with store.write() as tx:
        (again,) = await tx.outbox.claim("another-relay", clock.now(), timedelta(seconds=1))
    assert (again.target, again.attempts) == (BAD, 1)
    assert "secret" not in (again.last_error or "")


class Slow(Trouble):
    """Temporal answers the signal to BAD once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
        if target == BAD:
            await self.answers.wait()
        self.signalled.append(target)


async def undelivered(store: Store) -> set[str]:
    async with store.read() as tx:
        return await tx.outbox.targets_with_undelivered([BAD, GOOD])


async def test_a_delivery_that_takes_long_delays_neither_its_batch_nor_the_next_ones(
    store: Store, clock: SetClock
):
    slow = Slow()
    await put(store, clock, BAD)
    await put(store, clock, GOOD)
    relay = OutboxRelay(store, cast(Any, slow), cast(Any, slow), clock)
    assert await asyncio.wait_for(relay.deliver_batch(), PATIENCE_S) == 2
    assert await undelivered(store) == {BAD}
    await put(store, clock, GOOD)
    await put(store, clock, BAD)
    assert await asyncio.wait_for(relay.deliver_batch(), PATIENCE_S) == 1, "BAD's second waits for its first"
    slow.answers.set()
    await eventually(lambda: relay.deliver_batch(), lambda claimed: claimed == 1)
    assert slow.signalled == [GOOD, GOOD, BAD, BAD]
    assert await undelivered(store) == set()


class Woken(Trouble):
    """Temporal starts each workflow that it is asked for, or signals it; at first it may be away."""

    def __init__(self, *, away: bool = False) -> None:
        super().__init__()
        self.woken: list[tuple[str, bool]] = []
        self.away = away

    async def start(self, request: StartRequest) -> None:
        if self.away:
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE)
        (wake,) = request.options["start_signal_args"]
        self.woken.append((request.workflow_id, wake.at_once))


@pytest.mark.parametrize("away", [False, True])
async def test_one_delivery_does_for_all_wakes_of_a_webhook_and_none_is_lost(
    store: Store, clock: SetClock, away: bool
):
    hooks, asked = (
        [a_webhook("https://example.com/", clock.now()) for _ in range(2)],
        RequestContext(by="app:a"),
    )
    async with store.write() as tx:
        for number in range(70):
            await audit.wake_webhook(tx, hooks[0], asked, clock.now(), at_once=number == 60)
            await audit.wake_webhook(tx, hooks[1], asked, clock.now())
    link = Woken(away=away)
    relay = OutboxRelay(store, cast(Any, link), cast(Any, link), clock)
    assert await relay.deliver_batch() == 140
    if away:
        assert link.woken == []
        link.away = False
        clock.advance(31)  # a claim's time
        assert await relay.deliver_batch() == 140
    ids = [webhook_workflow_id(TENANT, hook.id) for hook in hooks]
    assert sorted(link.woken) == sorted([(ids[0], True), (ids[1], False)])
    assert await relay.deliver_batch() == 0


async def test_no_more_deliveries_than_that_are_left_behind_and_a_relay_that_ends_leaves_none(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_relay, "_MOST_SLOW", 1)
    slow = Slow()
    await put(store, clock, BAD)
    relay = OutboxRelay(store, cast(Any, slow), cast(Any, slow), clock)
    running = asyncio.create_task(relay.run())
    await eventually(lambda: asyncio.sleep(0.05, relay._slow))
    await put(store, clock, GOOD)
    relay.notify()
    await asyncio.sleep(0.3)
    assert slow.signalled == [], "one is left behind already"
    running.cancel()
    await asyncio.wait({running}, timeout=PATIENCE_S)
    assert not relay._slow
    assert await undelivered(store) == {BAD, GOOD}
    other = OutboxRelay(store, cast(Any, Trouble()), cast(Any, Trouble()), clock)
    assert await other.deliver_batch() == 2, "what the first one had begun waits for no claim to run out"


async def test_a_relay_that_ends_in_the_middle_of_a_batch_gives_it_back(store: Store, clock: SetClock):
    began = asyncio.Event()

    class Hanging(Slow):
        async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
            began.set()
            await asyncio.Event().wait()

    hanging = Hanging()
    await put(store, clock, GOOD)
    running = asyncio.create_task(OutboxRelay(store, cast(Any, hanging), cast(Any, hanging), clock).run())
    await began.wait()
    running.cancel()
    await asyncio.wait({running}, timeout=PATIENCE_S)
    other = Trouble()
    assert await OutboxRelay(store, cast(Any, other), cast(Any, other), clock).deliver_batch() == 1
    assert other.signalled == [GOOD]


async def test_a_relay_waits_until_fewer_deliveries_than_that_are_left_behind(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    """And not for the next one alone: a slow Temporal would get more and more at once."""
    monkeypatch.setattr(outbox_relay, "_MOST_SLOW", 1)
    answers = {target: asyncio.Event() for target in (BAD, GOOD)}
    third = connection_workflow_id(TENANT, ConnectionId(new_id("con")))

    class Slower(Trouble):
        async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
            if target in answers:
                await answers[target].wait()
            self.signalled.append(target)

    slower = Slower()
    await put(store, clock, BAD)
    await put(store, clock, GOOD)
    relay = OutboxRelay(store, cast(Any, slower), cast(Any, slower), clock)
    running = asyncio.create_task(relay.run())
    await eventually(lambda: asyncio.sleep(0.05, relay._slow), lambda slow: len(slow) == 2)
    await put(store, clock, third)
    answers[BAD].set()
    await eventually(lambda: asyncio.sleep(0.05, relay._slow), lambda slow: len(slow) == 1)
    await asyncio.sleep(0.3)
    assert slower.signalled == [BAD], "one is left behind still"
    answers[GOOD].set()
    await eventually(lambda: asyncio.sleep(0.05, slower.signalled), lambda told: told == [BAD, GOOD, third])
    running.cancel()
    await asyncio.wait({running}, timeout=PATIENCE_S)


async def test_a_signal_is_sent_again_after_its_workflow_was_started(store: Store, clock: SetClock):
    """A pass, or another message's relay, may start it between Temporal's no and the look at the run."""
    trouble = Trouble(revives=True)
    await put(store, clock, BAD)
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    await relay.deliver_batch()
    async with store.read() as tx:
        assert await tx.outbox.targets_with_undelivered([BAD]) == {BAD}
    assert trouble.signalled == []
    clock.advance(2)
    await relay.deliver_batch()
    async with store.read() as tx:
        assert await tx.outbox.targets_with_undelivered([BAD]) == set()
    assert trouble.signalled == [BAD]


@pytest.mark.parametrize(("lives", "told"), [(True, [BAD]), (False, [])])
async def test_a_signal_is_not_given_to_another_type_of_workflow(
    store: Store, clock: SetClock, lives: bool, told: list[str]
):
    trouble = Foreign(revives=lives)
    await put(store, clock, BAD)
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    await relay.deliver_batch()
    assert trouble.signalled == []
    clock.advance(2)
    await relay.deliver_batch()
    assert trouble.signalled == told
    async with store.read() as tx:
        assert await tx.outbox.targets_with_undelivered([BAD]) == set()


async def test_a_signal_to_a_connection_that_has_ended_is_dropped(store: Store, clock: SetClock):
    trouble = Trouble(revives=False)
    await put(store, clock, BAD)
    await OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock).deliver_batch()
    async with store.read() as tx:
        assert await tx.outbox.targets_with_undelivered([BAD]) == set()
    assert trouble.signalled == []


async def test_a_message_of_a_newer_version_blocks_no_other(store: Store, clock: SetClock):
    """After a rollback of the code: a newer worker delivers it."""
    trouble = Trouble()
    await put(store, clock, BAD)
    await put(store, clock, GOOD)
    async with store.write() as tx:
        (row,) = await fetch_all(tx.connection, select(OutboxRow).where(col(OutboxRow.target) == BAD))
        newer = {"kind": "from_the_future"}
        newer["mac"] = outbox_mac(store.ring, {**row, **newer})
        await tx.connection.execute(update(OutboxRow).where(col(OutboxRow.target) == BAD).values(newer))
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    assert await relay.deliver_batch() == 1
    assert trouble.signalled == [GOOD]
    async with store.read() as tx:
        assert await tx.outbox.targets_with_undelivered([BAD, GOOD]) == {BAD}


async def test_the_relay_survives_an_unexpected_error(
    store: Store, clock: SetClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    async def claim(*_: Any, **__: Any) -> None:
        raise ValueError("its text may be a secret")

    monkeypatch.setattr(Outbox, "claim", claim)
    await put(store, clock, GOOD)
    trouble = Trouble()
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    assert await relay.deliver_batch() == 0
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_relay_cancelled_while_notified_ends(store: Store, clock: SetClock):
    """A process is told to end at the moment at which a commit says that there is work."""
    looked = asyncio.Event()

    class Idle(OutboxRelay):
        async def deliver_batch(self) -> int:
            looked.set()
            return 0

    unused: Any = None
    relay = Idle(store, unused, unused, clock, timedelta(hours=1))
    running = asyncio.create_task(relay.run())
    await looked.wait()  # from here on it waits for a nudge
    relay.notify()
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=PATIENCE_S)
    assert done


async def test_a_message_that_another_hand_changed_is_never_delivered(
    store: Store, clock: SetClock, caplog: pytest.LogCaptureFixture
):
    trouble = Trouble()
    await put(store, clock, BAD)
    await put(store, clock, GOOD)
    async with store.write() as tx:
        changed = update(OutboxRow).where(col(OutboxRow.target) == BAD).values(name="rotate")
        await tx.connection.execute(changed)
    relay = OutboxRelay(store, cast(Any, trouble), cast(Any, trouble), clock)
    assert await relay.deliver_batch() == 1
    assert trouble.signalled == [GOOD]
    assert "authority broken: out_" in caplog.text
    clock.advance(600)
    assert await relay.deliver_batch() == 0
