"""An answer that came after its attempt was taken over, and the other use that may end what it brought."""

from dataclasses import replace
from pathlib import Path

import pytest

from activities.single_use.attempt import SingleUseAttempt
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.store import Store
from tests.fakes.clock import SetClock
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    NO_ROTATION,
    STRICT,
    RecordedOutcome,
    Worker,
    fails,
    keep_reply,
    row,
)

OVER_S = (LIMITS.send + LIMITS.answer).total_seconds() + 1
WAITS = "waits for the answer"


@pytest.fixture
def answered(store: Store, clock: SetClock, host: Path) -> Worker:
    """The worker that was stopped; it waits as long for the other one as anybody does."""
    return Worker(store, clock, host)


@pytest.fixture
def other(store: Store, clock: SetClock, host: Path, answered: Worker) -> Worker:
    """Its neighbour, by whose clock nobody can be listening any more."""
    return Worker(store, clock, host, TimeLimits(send=LIMITS.send, answer=-LIMITS.send))


def came(use: SingleUseAttempt) -> SingleUseAttempt:
    """Its answer lies in the journal."""
    return replace(use, entry=keep_reply(use))


async def waits(store: Store, worker: Worker, use: SingleUseAttempt, rules: RefreshRules = STRICT) -> bool:
    """Was what came installed beside a use that may have ended it?"""
    async with store.write() as tx:
        crossed = await worker.single_use.tracker.record_late_install(
            tx, use.row, rules, journaled=use.entry is not None
        )
    outcome = (await row(store, use.row)).outcome
    assert outcome is not AttemptOutcome.INSTALLED
    assert crossed or outcome is not AttemptOutcome.INSTALLED_LATE
    return crossed


async def test_a_late_reply_waits_for_a_use_in_flight(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    assert (await row(store, late.row)).outcome is AttemptOutcome.SUPERSEDED
    assert await waits(store, answered, late), "no journal keeps what it would wait with"
    late = came(late)
    with fails(ErrorCode.REFRESH_PENDING, WAITS) as raised:
        await waits(store, answered, late)
    assert raised.value.retry_after == LIMITS.poll_interval.total_seconds()
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    assert await waits(store, answered, late)
    assert (await row(store, late.row)).outcome is AttemptOutcome.INSTALLED_LATE


@pytest.mark.parametrize(
    ("end", "crossed"), [(AttemptOutcome.REFUSED, True), (AttemptOutcome.NOT_SENT, False)]
)
async def test_a_refused_use_may_have_invalidated_the_late_tokens_and_an_unsent_one_not(
    store: Store, answered: Worker, other: Worker, connection: Connection, end: AttemptOutcome, crossed: bool
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    async with store.write() as tx:
        await tx.attempts.close(second.row, end, second.row.opened_at)
    assert await waits(store, answered, came(late)) is crossed
    expected = AttemptOutcome.INSTALLED_LATE if crossed else AttemptOutcome.SUPERSEDED
    assert (await row(store, late.row)).outcome is expected


async def test_without_rotation_a_late_reply_waits_for_no_use(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    await other.begin(connection)
    assert not await waits(store, answered, came(late), NO_ROTATION)


async def test_a_late_reply_waits_for_no_use_of_another_credential(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    await other.begin(connection, AttemptKind.CODE_EXCHANGE)
    assert not await waits(store, answered, came(late))


async def test_a_late_reply_without_another_use_does_not_wait(
    store: Store, answered: Worker, connection: Connection
):
    assert not await waits(store, answered, came(await answered.begin(connection)))


async def test_a_late_reply_does_not_wait_for_another_host(
    store: Store, worker: Worker, far: Worker, connection: Connection, clock: SetClock
):
    """That host knows at once when its use has ended; here nobody would for a minute."""
    late = await worker.begin(connection)
    clock.advance(OVER_S)
    await far.begin(connection)
    assert await waits(store, worker, came(late))


@pytest.mark.parametrize("end", [AttemptOutcome.NOT_SENT, AttemptOutcome.SUPERSEDED, None])
async def test_a_credential_is_not_sent_again_while_its_late_reply_is_journaled(
    store: Store, answered: Worker, other: Worker, connection: Connection, end: AttemptOutcome | None
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    late = came(late)
    assert late.entry is not None
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    if end is not None:
        async with store.write() as tx:
            await tx.attempts.close(second.row, end, second.row.opened_at)
    for worker in (answered, other):
        with fails(ErrorCode.REFRESH_PENDING, "a late reply waits in a journal"):
            await worker.begin(connection)
    late.entry.drop()
    assert (await other.begin(connection)).row.from_generation == 1


async def test_without_rotation_a_credential_is_sent_again_beside_a_late_reply(
    answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    came(late)
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    assert (await other.begin(connection, rules=NO_ROTATION)).row.sends == 3


async def test_a_late_entry_is_waited_for_ten_minutes_after_the_takeover(
    store: Store, answered: Worker, other: Worker, connection: Connection, clock: SetClock
):
    """Its own times are long over; and ten minutes later what can't be replayed stands in nobody's way."""
    late = await answered.begin(connection)
    clock.advance(3600)
    await other.begin(connection)
    came(late)
    for worker in (answered, other):
        assert worker.single_use.tracker.has_late_entry([await row(store, late.row)])
        assert not worker.single_use.tracker.has_late_entry([])
    clock.advance(OVER_S + LIMITS.replay.total_seconds())
    assert not answered.single_use.tracker.has_late_entry([await row(store, late.row)])
