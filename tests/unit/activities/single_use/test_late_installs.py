"""An answer that came after its attempt was taken over, and the other use that may end what it brought."""

from dataclasses import replace

import pytest

from activities.single_use.attempt import SingleUseAttempt
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, TimeLimits
from tests.fakes.failures import fails
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    NO_ROTATION,
    STRICT,
    RecordedOutcome,
    Worker,
    keep_reply,
)

OVER_S = (LIMITS.send + LIMITS.answer).total_seconds() + 1
WAITS = "waits for the answer"


@pytest.fixture
def other(worker: Worker) -> Worker:
    """A neighbour of the worker that was stopped, by whose clock no worker can be listening any more."""
    return worker.beside(TimeLimits(send=LIMITS.send, answer=-LIMITS.send))


def came(use: SingleUseAttempt) -> SingleUseAttempt:
    """Its answer lies in the journal."""
    return replace(use, entry=keep_reply(use))


async def waits(worker: Worker, use: SingleUseAttempt, rules: RefreshRules = STRICT) -> bool:
    """Was what came installed beside a use that may have ended it?"""
    async with worker.store.write() as tx:
        crossed = await worker.tracker.record_late_install(
            tx, use.row, rules, journaled=use.entry is not None
        )
    outcome = (await worker.row_of(use.row)).outcome
    assert outcome is not AttemptOutcome.INSTALLED
    assert crossed or outcome is not AttemptOutcome.INSTALLED_LATE
    return crossed


async def test_a_late_reply_waits_for_a_use_in_flight(worker: Worker, other: Worker):
    late = await worker.begin()
    second = await other.begin()
    assert (await worker.row_of(late.row)).outcome is AttemptOutcome.SUPERSEDED
    assert await waits(worker, late), "no journal keeps what it would wait with"
    late = came(late)
    with fails(ErrorCode.REFRESH_PENDING, WAITS) as raised:
        await waits(worker, late)
    assert raised.value.retry_after == LIMITS.poll_interval.total_seconds()
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    assert await waits(worker, late)
    assert (await worker.row_of(late.row)).outcome is AttemptOutcome.INSTALLED_LATE


@pytest.mark.parametrize(
    ("end", "crossed"), [(AttemptOutcome.REFUSED, True), (AttemptOutcome.NOT_SENT, False)]
)
async def test_a_refused_use_may_have_invalidated_the_late_tokens_and_an_unsent_one_not(
    worker: Worker, other: Worker, end: AttemptOutcome, crossed: bool
):
    late = await worker.begin()
    second = await other.begin()
    async with worker.store.write() as tx:
        await tx.attempts.close(second.row, end, second.row.opened_at)
    assert await waits(worker, came(late)) is crossed
    expected = AttemptOutcome.INSTALLED_LATE if crossed else AttemptOutcome.SUPERSEDED
    assert (await worker.row_of(late.row)).outcome is expected


@pytest.mark.parametrize(
    ("other_kind", "rules"), [(AttemptKind.REFRESH, NO_ROTATION), (AttemptKind.CODE_EXCHANGE, STRICT)]
)
async def test_a_late_reply_waits_for_no_use_that_can_t_invalidate_it(
    worker: Worker, other: Worker, other_kind: AttemptKind, rules: RefreshRules
):
    late = await worker.begin()
    await other.begin(other_kind)
    assert not await waits(worker, came(late), rules)


async def test_a_late_reply_without_another_use_does_not_wait(worker: Worker):
    assert not await waits(worker, came(await worker.begin()))


async def test_a_late_reply_does_not_wait_for_another_host(worker: Worker, far: Worker):
    """That host knows at once when its use has ended; here nobody would for a minute."""
    late = await worker.begin()
    worker.clock.advance(OVER_S)
    await far.begin()
    assert await waits(worker, came(late))


@pytest.mark.parametrize("end", [AttemptOutcome.NOT_SENT, AttemptOutcome.SUPERSEDED, None])
async def test_a_credential_is_not_sent_again_while_its_late_reply_is_journaled(
    worker: Worker, other: Worker, end: AttemptOutcome | None
):
    late = await worker.begin()
    second = await other.begin()
    late = came(late)
    assert late.entry is not None
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    if end is not None:
        async with worker.store.write() as tx:
            await tx.attempts.close(second.row, end, second.row.opened_at)
    for one in (worker, other):
        with fails(ErrorCode.REFRESH_PENDING, "a late reply waits in a journal"):
            await one.begin()
    late.entry.drop()
    assert (await other.begin()).row.from_generation == 1


async def test_without_rotation_a_credential_is_sent_again_beside_a_late_reply(worker: Worker, other: Worker):
    late = await worker.begin()
    second = await other.begin()
    came(late)
    await other.spend(second, RecordedOutcome(other.journal), Failure(ErrorCode.INTERNAL))
    assert (await other.begin(rules=NO_ROTATION)).row.sends == 3


async def test_a_late_entry_is_waited_for_ten_minutes_after_the_takeover(worker: Worker, other: Worker):
    """Its own times are long over; and ten minutes later what can't be replayed stands in nobody's way."""
    late = await worker.begin()
    worker.clock.advance(3600)
    await other.begin()
    came(late)
    for one in (worker, other):
        assert one.tracker.has_late_entry([await worker.row_of(late.row)])
        assert not one.tracker.has_late_entry([])
    worker.clock.advance(OVER_S + LIMITS.replay.total_seconds())
    assert not worker.tracker.has_late_entry([await worker.row_of(late.row)])
