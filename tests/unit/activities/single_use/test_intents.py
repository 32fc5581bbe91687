"""Intents: what is committed before anything is sent, and what whoever comes later makes of it."""

from datetime import timedelta

import pytest

from activities.single_use import intent
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import MAX_SENDS, AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose
from tests.conformance.store.samples import refreshed, some_tokens
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    NO_ROTATION,
    STRICT,
    Worker,
    keep_reply,
    reservation_of,
)

OVER = LIMITS.send + LIMITS.answer  # from an intent until nobody can be listening any more


async def test_the_intent_and_its_reservation_exist_before_anything_is_sent(worker: Worker):
    use = await worker.begin(AttemptKind.DEVICE_CODE)
    stands = await worker.opened()
    assert stands is not None
    assert stands == use.row
    assert (stands.tenant, stands.connection_id) == (worker.connection.tenant, worker.connection.id)
    assert (stands.kind, stands.credential, stands.from_generation) == (AttemptKind.DEVICE_CODE, "c", 1)
    assert stands.journal_id == worker.journal.id
    assert (stands.opened_at, stands.send_by) == (NOW, NOW + LIMITS.send)
    assert (stands.sends, stands.first_sent_at) == (1, None)
    assert stands.id.startswith("att_")
    assert worker.files() == [".room"]
    assert worker.tracker.status_of(stands).in_flight


@pytest.mark.parametrize(
    ("kind", "intake"),
    [(AttemptKind.REFRESH, False), (AttemptKind.CODE_EXCHANGE, True), (AttemptKind.LATE_TOKENS, True)],
)
async def test_the_keys_for_the_reply_are_unwrapped_before_the_intent(
    worker: Worker, kind: AttemptKind, intake: bool
):
    use = await worker.begin(kind)
    assert use.keys.current(KeyPurpose.LEASE).id != use.keys.current(KeyPurpose.REFRESH).id
    assert (KeyPurpose.INTAKE in repr(use.keys)) is intake


async def test_a_full_disk_prevents_the_intent(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    def full(attempt: object) -> None:
        raise Failure(ErrorCode.JOURNAL_UNAVAILABLE)

    monkeypatch.setattr(worker.journal, "reserve", full)
    with fails(ErrorCode.JOURNAL_UNAVAILABLE):
        await worker.begin()
    assert await worker.opened() is None


async def test_an_attempt_is_refused_once_the_connection_has_changed_since_it_was_read(worker: Worker):
    gone = worker.connection.model_copy(update={"id": "con_0000000000000000000000"})
    with fails(ErrorCode.STORE_CONFLICT):
        await worker.begin(connection=gone)
    async with worker.store.write() as tx:
        condemned = worker.connection.rejected(ErrorCode.GRANT_REJECTED, NOW)
        rejected = await tx.connections.replace(condemned, expected=worker.connection.revision)
    with fails(ErrorCode.STORE_CONFLICT):
        await worker.begin()
    await refreshed(worker.store, rejected, some_tokens("at-2", "rt-2"))
    with fails(ErrorCode.STORE_CONFLICT, worker.connection.id):
        await worker.begin()
    assert await worker.opened() is None
    assert worker.files() == [], "its reservation is released"


async def test_an_attempt_in_flight_is_waited_for(worker: Worker, neighbour: Worker):
    first = await worker.begin(rules=NO_ROTATION)
    with fails(ErrorCode.REFRESH_PENDING, "no known outcome") as caught:
        await neighbour.begin(rules=NO_ROTATION)
    assert caught.value.retry_after == LIMITS.poll_interval.total_seconds()
    assert await worker.opened() == first.row
    assert neighbour.files() == [".room"], "its own is given back, the other's stays"


async def test_an_attempt_whose_owner_died_unsent_does_not_count(worker: Worker, neighbour: Worker):
    first = await worker.begin()
    await worker.dies(first, sent=False)
    second = await neighbour.begin(token_valid=True)
    assert (second.row.sends, second.row.first_sent_at) == (1, None)
    ended = await worker.row_of(first.row)
    assert (ended.outcome, ended.closed_at) == (AttemptOutcome.NOT_SENT, NOW)


@pytest.mark.parametrize("rules", [STRICT, NO_ROTATION, RefreshRules(rotation=Rotation.GRACE, grace_s=30)])
async def test_an_attempt_whose_owner_died_after_sending_counts(
    worker: Worker, neighbour: Worker, rules: RefreshRules
):
    first = await worker.begin()
    await worker.dies(first, sent=True)
    worker.clock.advance(10)
    second = await neighbour.begin(rules=rules, token_valid=True)
    assert (second.row.sends, second.row.first_sent_at) == (2, NOW)
    ended = await worker.row_of(first.row)
    assert (ended.outcome, ended.closed_at) == (AttemptOutcome.SUPERSEDED, NOW + timedelta(seconds=10))
    assert await worker.opened() == second.row


async def test_an_attempt_of_another_host_is_waited_for_until_its_reply_can_t_arrive_and_the_token_is_over(
    worker: Worker, far: Worker, counted: list[str]
):
    await far.begin()
    worker.clock.advance(OVER.total_seconds() - 1)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin(token_valid=False)
    worker.clock.advance(2)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin(token_valid=True)
    assert counted == []
    second = await worker.begin(token_valid=False)
    assert second.row.sends == 2
    assert counted == ["possible"], "it may have been stopped just before it sent"


@pytest.mark.parametrize("rules", [NO_ROTATION, STRICT])
async def test_a_harmless_second_send_is_not_counted(
    worker: Worker, neighbour: Worker, far: Worker, counted: list[str], rules: RefreshRules
):
    if rules is NO_ROTATION:
        await far.begin()
    else:
        await worker.dies(await worker.begin(), sent=True)
    worker.clock.advance(OVER.total_seconds() + 1)
    assert (await neighbour.begin(rules=rules)).row.sends == 2
    assert counted == []


async def test_a_worker_stopped_past_every_deadline_is_fenced_off(worker: Worker):
    hasty = worker.beside(TimeLimits(send=timedelta(0), answer=timedelta(0)))
    stopped = await worker.begin()
    assert hasty.tracker.status_of(stopped.row).in_flight is False
    assert worker.tracker.status_of(stopped.row).in_flight, "it knows better of itself"
    worker.clock.advance(OVER.total_seconds() + 1)
    second = await hasty.begin()
    assert second.row.sends == 2
    assert not reservation_of(stopped).begin_send(), "it sends no more"


async def test_a_stopped_neighbour_is_in_flight_until_both_limits_have_passed(worker: Worker):
    use = await worker.begin()
    for send, answer in ((0, 3600), (3600, 0)):
        limits = TimeLimits(send=timedelta(seconds=send), answer=timedelta(seconds=answer))
        assert worker.beside(limits).tracker.status_of(use.row).in_flight


async def test_a_worker_that_is_sending_is_not_taken_over(worker: Worker):
    hasty = worker.beside(TimeLimits(send=timedelta(0), answer=timedelta(0)))
    use = await worker.begin()
    assert reservation_of(use).begin_send()
    worker.clock.advance(OVER.total_seconds() + 1)
    with fails(ErrorCode.REFRESH_PENDING, "in the instant of sending"):
        await hasty.begin()
    assert await worker.opened() == use.row


async def test_a_credential_is_given_up_after_the_most_sends(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    use = await worker.begin()
    async with worker.store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.NOT_SENT, NOW)
        often = use.row.model_copy(update={"id": "att_often", "sends": MAX_SENDS})
        await tx.attempts.open(often)
        await tx.attempts.close(often, AttemptOutcome.SUPERSEDED, NOW)
    with fails(ErrorCode.OUTCOME_UNKNOWN, "as often as allowed"):
        await worker.begin()
    assert (await worker.begin(rules=NO_ROTATION)).row.sends == MAX_SENDS + 1


async def test_a_journaled_reply_is_not_requested_again(worker: Worker, neighbour: Worker):
    use = await worker.begin()
    keep_reply(use)
    await worker.dies(use, sent=False)
    worker.clock.advance(3600)
    with fails(ErrorCode.REFRESH_PENDING):
        await neighbour.begin(rules=NO_ROTATION)


async def test_an_attempt_dated_ahead_is_waited_for_since_it_was_first_seen(
    worker: Worker, far: Worker, monkeypatch: pytest.MonkeyPatch
):
    """Its host's clock was a day ahead. Ours gets there tomorrow, and nobody waits for that."""
    machine = 1000.0
    monkeypatch.setattr(intent, "seconds_since_boot", lambda: machine)
    worker.clock.advance(86_400)
    ahead = (await far.begin()).row
    worker.clock.advance(-86_400)
    assert worker.tracker.may_be_answered(ahead), "seen for the first time"
    machine += OVER.total_seconds() - 1
    assert worker.tracker.may_be_answered(ahead)
    with fails(ErrorCode.REFRESH_PENDING):
        await worker.begin()
    machine += 2
    assert not worker.tracker.may_be_answered(ahead)
    assert (await worker.begin()).row.sends == 2
    assert (await worker.row_of(ahead)).outcome is AttemptOutcome.SUPERSEDED


async def test_the_memory_of_attempts_dated_ahead_is_bounded(
    worker: Worker, far: Worker, monkeypatch: pytest.MonkeyPatch
):
    machine = 1000.0
    monkeypatch.setattr(intent, "seconds_since_boot", lambda: machine)
    monkeypatch.setattr(intent, "_MAX_FIRST_SEEN", 2)
    worker.clock.advance(86_400)
    ahead = (await far.begin()).row
    worker.clock.advance(-86_400)

    def another(name: str) -> None:
        assert worker.tracker.may_be_answered(ahead.model_copy(update={"id": name}))

    assert worker.tracker.may_be_answered(ahead)
    another("att_1")
    machine += OVER.total_seconds() + 1
    assert not worker.tracker.may_be_answered(ahead), "remembered, also when there is room for no more"
    another("att_2")
    assert worker.tracker.may_be_answered(ahead), "forgotten: it is waited for anew"
