"""An answer that came after its attempt was taken over, and the other use that may end what it brought."""

from pathlib import Path

import pytest

from activities.single_use import Use
from evergrant_server.core.attempt import AttemptKind, Limits, Outcome
from evergrant_server.core.clock import SetClock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.provider import RefreshRules
from evergrant_server.crypto import Lane
from evergrant_server.store import Store
from tests.unit.activities.protocol_worker import (
    LIMITS,
    NO_ROTATION,
    STRICT,
    Told,
    Worker,
    fails,
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
    return Worker(store, clock, host, Limits(send=LIMITS.send, answer=-LIMITS.send))


async def waits(store: Store, worker: Worker, use: Use, rules: RefreshRules = STRICT) -> None:
    async with store.read() as tx:
        await worker.single_use.wait_for_another(tx, use.attempt, rules)


async def test_it_waits_for_a_use_that_is_under_way(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    assert (await row(store, late.attempt)).outcome is Outcome.SUPERSEDED
    with fails(Code.REFRESH_PENDING, WAITS) as raised:
        await waits(store, answered, late)
    assert raised.value.retry_after == LIMITS.look_again.total_seconds()
    await other.spend(second, Told(other.journal), Failure(Code.INTERNAL))
    await waits(store, answered, late)


async def test_it_waits_for_nobody_where_the_provider_takes_both_uses(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    await other.begin(connection)
    await waits(store, answered, late, NO_ROTATION)


async def test_it_waits_for_no_use_of_another_credential(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    await other.begin(connection, AttemptKind.CODE_EXCHANGE)
    await waits(store, answered, late)


async def test_it_waits_for_nobody_when_no_other_use_is_left(
    store: Store, answered: Worker, connection: Connection
):
    await waits(store, answered, await answered.begin(connection))


async def test_it_waits_for_another_host_no_longer_than_its_answer_may_take(
    store: Store, worker: Worker, far: Worker, connection: Connection, clock: SetClock
):
    late = await worker.begin(connection)
    clock.advance(OVER_S)
    await far.begin(connection)
    with fails(Code.REFRESH_PENDING, WAITS):
        await waits(store, worker, late)
    clock.advance(OVER_S)
    await waits(store, worker, late)


async def test_what_it_answers_is_not_sent_again_while_it_waits_in_a_journal(
    store: Store, answered: Worker, other: Worker, connection: Connection
):
    late = await answered.begin(connection)
    second = await other.begin(connection)
    assert late.room is not None
    entry = late.room.keep(late.keys.current(Lane.REFRESH), b"an answer")
    async with store.write() as tx:
        await tx.attempts.close(second.attempt, Outcome.NOT_SENT, second.attempt.opened_at)
    for worker in (answered, other):
        with fails(Code.REFRESH_PENDING, "waits in a journal"):
            await worker.begin(connection)
    entry.drop()
    assert (await other.begin(connection)).attempt.sends == 2
