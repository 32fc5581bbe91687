"""Intents: what is committed before anything is sent, and what whoever comes later makes of it."""

from datetime import timedelta
from pathlib import Path

import pytest

from activities.single_use import attempt_tracker
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import MAX_SENDS, AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Store
from evergrant_server.telemetry import metrics
from tests.conformance.store.samples import refreshed, some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    NO_ROTATION,
    STRICT,
    Worker,
    fails,
    keep_reply,
    opened,
    reservation_of,
    row,
)

OVER = LIMITS.send + LIMITS.answer  # from an intent until nobody can be listening any more


async def test_the_intent_and_its_reservation_exist_before_anything_is_sent(
    store: Store, worker: Worker, connection: Connection
):
    use = await worker.begin(connection, AttemptKind.DEVICE_CODE)
    stands = await opened(store, connection)
    assert stands is not None
    assert stands == use.row
    assert (stands.tenant, stands.connection_id) == (connection.tenant, connection.id)
    assert (stands.kind, stands.credential, stands.from_generation) == (AttemptKind.DEVICE_CODE, "c", 1)
    assert stands.journal_id == worker.journal.id
    assert (stands.opened_at, stands.send_by) == (NOW, NOW + LIMITS.send)
    assert (stands.sends, stands.first_sent_at) == (1, None)
    assert stands.id.startswith("att_")
    assert worker.files() == [".room"]
    assert worker.single_use.tracker.status_of(stands).in_flight


@pytest.mark.parametrize(
    ("kind", "intake"),
    [(AttemptKind.REFRESH, False), (AttemptKind.CODE_EXCHANGE, True), (AttemptKind.LATE_TOKENS, True)],
)
async def test_the_keys_for_the_reply_are_unwrapped_before_the_intent(
    worker: Worker, connection: Connection, kind: AttemptKind, intake: bool
):
    use = await worker.begin(connection, kind)
    assert use.keys.current(KeyPurpose.LEASE).id != use.keys.current(KeyPurpose.REFRESH).id
    assert (KeyPurpose.INTAKE in repr(use.keys)) is intake


async def test_a_full_disk_prevents_the_intent(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    def full(attempt: object) -> None:
        raise Failure(ErrorCode.JOURNAL_UNAVAILABLE)

    monkeypatch.setattr(worker.journal, "reserve", full)
    with fails(ErrorCode.JOURNAL_UNAVAILABLE):
        await worker.begin(connection)
    assert await opened(store, connection) is None


async def test_an_attempt_is_refused_once_the_connection_has_changed_since_it_was_read(
    store: Store, worker: Worker, connection: Connection
):
    gone = connection.model_copy(update={"id": "con_0000000000000000000000"})
    with fails(ErrorCode.STORE_CONFLICT):
        await worker.begin(gone)
    async with store.write() as tx:
        condemned = connection.rejected(ErrorCode.GRANT_REJECTED, NOW)
        rejected = await tx.connections.replace(condemned, expected=connection.revision)
    with fails(ErrorCode.STORE_CONFLICT):
        await worker.begin(connection)
    await refreshed(store, rejected, some_tokens("at-2", "rt-2"))
    with fails(ErrorCode.STORE_CONFLICT, connection.id):
        await worker.begin(connection)
    assert await opened(store, connection) is None
    assert worker.files() == [], "its reservation is released"


async def test_an_attempt_in_flight_is_waited_for(
    store: Store, worker: Worker, neighbour: Worker, connection: Connection
):
    first = await worker.begin(connection, rules=NO_ROTATION)
    with pytest.raises(Failure) as caught:
        await neighbour.begin(connection, rules=NO_ROTATION)
    assert caught.value.code is ErrorCode.REFRESH_PENDING
    assert caught.value.retry_after == LIMITS.poll_interval.total_seconds()
    assert "no known outcome" in caught.value.detail
    assert await opened(store, connection) == first.row
    assert neighbour.files() == [".room"], "its own is given back, the other's stays"


async def test_an_attempt_whose_owner_died_unsent_does_not_count(
    store: Store, worker: Worker, neighbour: Worker, connection: Connection
):
    first = await worker.begin(connection)
    await worker.dies(first, sent=False)
    second = await neighbour.begin(connection, token_valid=True)
    assert (second.row.sends, second.row.first_sent_at) == (1, None)
    ended = await row(store, first.row)
    assert (ended.outcome, ended.closed_at) == (AttemptOutcome.NOT_SENT, NOW)


@pytest.mark.parametrize("rules", [STRICT, NO_ROTATION, RefreshRules(rotation=Rotation.GRACE, grace_s=30)])
async def test_an_attempt_whose_owner_died_after_sending_counts(
    store: Store,
    worker: Worker,
    neighbour: Worker,
    connection: Connection,
    clock: SetClock,
    rules: RefreshRules,
):
    first = await worker.begin(connection)
    await worker.dies(first, sent=True)
    clock.advance(10)
    second = await neighbour.begin(connection, rules=rules, token_valid=True)
    assert (second.row.sends, second.row.first_sent_at) == (2, NOW)
    ended = await row(store, first.row)
    assert (ended.outcome, ended.closed_at) == (AttemptOutcome.SUPERSEDED, NOW + timedelta(seconds=10))
    assert await opened(store, connection) == second.row


async def test_an_attempt_of_another_host_is_waited_for_until_its_reply_can_t_arrive_and_the_token_is_over(
    store: Store,
    worker: Worker,
    far: Worker,
    connection: Connection,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_double_send", counted.append)
    await far.begin(connection)
    clock.advance(OVER.total_seconds() - 1)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin(connection, token_valid=False)
    clock.advance(2)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin(connection, token_valid=True)
    assert counted == []
    second = await worker.begin(connection, token_valid=False)
    assert second.row.sends == 2
    assert counted == ["possible"], "it may have been stopped just before it sent"


@pytest.mark.parametrize("rules", [NO_ROTATION, STRICT])
async def test_a_harmless_second_send_is_not_counted(
    worker: Worker,
    neighbour: Worker,
    far: Worker,
    connection: Connection,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
    rules: RefreshRules,
):
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_double_send", counted.append)
    if rules is NO_ROTATION:
        await far.begin(connection)
    else:
        await worker.dies(await worker.begin(connection), sent=True)
    clock.advance(OVER.total_seconds() + 1)
    assert (await neighbour.begin(connection, rules=rules)).row.sends == 2
    assert counted == []


async def test_a_worker_stopped_past_every_deadline_is_fenced_off(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    hasty = Worker(store, clock, host, TimeLimits(send=timedelta(0), answer=timedelta(0)))
    stopped = await worker.begin(connection)
    assert hasty.single_use.tracker.status_of(stopped.row).in_flight is False
    assert worker.single_use.tracker.status_of(stopped.row).in_flight, "it knows better of itself"
    clock.advance(OVER.total_seconds() + 1)
    second = await hasty.begin(connection)
    assert second.row.sends == 2
    assert not reservation_of(stopped).begin_send(), "it sends no more"


async def test_a_stopped_neighbour_is_in_flight_until_both_limits_have_passed(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    use = await worker.begin(connection)
    for send, answer in ((0, 3600), (3600, 0)):
        limits = TimeLimits(send=timedelta(seconds=send), answer=timedelta(seconds=answer))
        assert Worker(store, clock, host, limits).single_use.tracker.status_of(use.row).in_flight


async def test_a_worker_that_is_sending_is_not_taken_over(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    hasty = Worker(store, clock, host, TimeLimits(send=timedelta(0), answer=timedelta(0)))
    use = await worker.begin(connection)
    assert reservation_of(use).begin_send()
    clock.advance(OVER.total_seconds() + 1)
    with fails(ErrorCode.REFRESH_PENDING, "in the instant of sending"):
        await hasty.begin(connection)
    assert await opened(store, connection) == use.row


async def test_a_credential_is_given_up_after_the_most_sends(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    use = await worker.begin(connection)
    async with store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.NOT_SENT, NOW)
        often = use.row.model_copy(update={"id": "att_often", "sends": MAX_SENDS})
        await tx.attempts.open(often)
        await tx.attempts.close(often, AttemptOutcome.SUPERSEDED, NOW)
    with fails(ErrorCode.OUTCOME_UNKNOWN, "as often as allowed"):
        await worker.begin(connection)
    assert (await worker.begin(connection, rules=NO_ROTATION)).row.sends == MAX_SENDS + 1


async def test_a_journaled_reply_is_not_requested_again(
    worker: Worker, neighbour: Worker, connection: Connection, clock: SetClock
):
    use = await worker.begin(connection)
    keep_reply(use)
    await worker.dies(use, sent=False)
    clock.advance(3600)
    with fails(ErrorCode.REFRESH_PENDING):
        await neighbour.begin(connection, rules=NO_ROTATION)


async def test_an_attempt_dated_ahead_is_waited_for_since_it_was_first_seen(
    store: Store, worker: Worker, far: Worker, connection: Connection, clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Its host's clock was a day ahead. Ours gets there tomorrow, and nobody waits for that."""
    machine = 1000.0
    monkeypatch.setattr(attempt_tracker, "seconds_since_boot", lambda: machine)
    clock.advance(86_400)
    ahead = (await far.begin(connection)).row
    clock.advance(-86_400)
    assert worker.single_use.tracker.may_be_answered(ahead), "seen for the first time"
    machine += OVER.total_seconds() - 1
    assert worker.single_use.tracker.may_be_answered(ahead)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin(connection)
    machine += 2
    assert not worker.single_use.tracker.may_be_answered(ahead)
    assert (await worker.begin(connection)).row.sends == 2
    assert (await row(store, ahead)).outcome is AttemptOutcome.SUPERSEDED


async def test_the_memory_of_attempts_dated_ahead_is_bounded(
    worker: Worker, far: Worker, connection: Connection, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    machine = 1000.0
    monkeypatch.setattr(attempt_tracker, "seconds_since_boot", lambda: machine)
    monkeypatch.setattr(attempt_tracker, "_MAX_FIRST_SEEN", 2)
    clock.advance(86_400)
    ahead = (await far.begin(connection)).row
    clock.advance(-86_400)

    def another(name: str) -> None:
        assert worker.single_use.tracker.may_be_answered(ahead.model_copy(update={"id": name}))

    assert worker.single_use.tracker.may_be_answered(ahead)
    another("att_1")
    machine += OVER.total_seconds() + 1
    assert not worker.single_use.tracker.may_be_answered(ahead), (
        "remembered, also when there is room for no more"
    )
    another("att_2")
    assert worker.single_use.tracker.may_be_answered(ahead), "forgotten: it is waited for anew"


@pytest.mark.parametrize("after", [timedelta(0), OVER - timedelta(seconds=1)])
async def test_an_attempt_may_be_answered_until_its_limits_have_passed(
    worker: Worker, far: Worker, connection: Connection, clock: SetClock, after: timedelta
):
    use = await far.begin(connection)
    clock.advance(after.total_seconds())
    assert worker.single_use.tracker.may_be_answered(use.row)
    assert far.single_use.tracker.may_be_answered(use.row)
    clock.advance((OVER - after).total_seconds() + 1)
    assert not worker.single_use.tracker.may_be_answered(use.row)
    assert far.single_use.tracker.may_be_answered(use.row), "it is under way there"


async def test_a_journaled_reply_that_can_t_be_replayed_is_waited_for_ten_minutes(
    worker: Worker, neighbour: Worker, connection: Connection, clock: SetClock
):
    use = await worker.begin(connection)
    keep_reply(use)
    await worker.dies(use, sent=False)
    clock.advance((OVER + LIMITS.replay).total_seconds() - 1)
    assert neighbour.single_use.tracker.may_be_answered(use.row)
    clock.advance(2)
    assert not neighbour.single_use.tracker.may_be_answered(use.row)
