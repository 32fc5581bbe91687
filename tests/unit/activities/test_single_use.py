"""The protocol for single-use credentials, rule by rule: a real store and journal, and nobody in between.

That the rules are enough is the model's to say (tests/unit/core/test_protocol_model.py), that they
hold while processes die the harness's (tests/faults/harness). Here each line has a test that notices.
"""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from activities import single_use
from activities.answers import Answer
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import MOST_SENDS, AttemptKind, Limits, Outcome
from evergrant_server.core.clock import SetClock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.crypto import Lane, open_sealed
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import Entry
from evergrant_server.store import Store
from providers.flows import SendFailed
from providers.reply import RawReply
from tests.conformance.store.samples import refreshed, some_tokens
from tests.fakes.databases import NOW
from tests.unit.activities.protocol_worker import (
    LIMITS,
    NO,
    NO_ROTATION,
    STRICT,
    YES,
    Told,
    Worker,
    an_order,
    opened,
    refusing,
    row,
)

OVER = LIMITS.send + LIMITS.answer  # from an intent until nobody can be listening any more


def fails(code: Code, why: str = "") -> "pytest.RaisesExc[Failure]":
    return pytest.RaisesExc(Failure, check=lambda it: it.code is code and why in it.detail)


# --- the intent -----------------------------------------------------------------------------


async def test_the_intent_is_committed_with_its_room_before_anything_is_sent(
    store: Store, worker: Worker, connection: Connection
):
    use = await worker.begin(connection, AttemptKind.DEVICE_CODE)
    stands = await opened(store, connection)
    assert stands is not None
    assert stands == use.attempt
    assert (stands.tenant, stands.connection_id) == (connection.tenant, connection.id)
    assert (stands.kind, stands.credential, stands.from_generation) == (AttemptKind.DEVICE_CODE, "c", 1)
    assert stands.journal_id == worker.journal.id
    assert (stands.opened_at, stands.send_by) == (NOW, NOW + LIMITS.send)
    assert (stands.sends, stands.asked_at) == (1, None)
    assert stands.id.startswith("att_")
    assert worker.files() == [".room"]
    assert worker.single_use.fate(stands).in_flight


async def test_what_is_spent_is_told_from_what_else_has_this_generation(
    worker: Worker, connection: Connection
):
    use = await worker.single_use.begin(AttemptKind.REFRESH, connection, STRICT, token_valid=False)
    assert use.attempt.credential == ""


@pytest.mark.parametrize(
    ("kind", "intake"),
    [(AttemptKind.REFRESH, False), (AttemptKind.CODE_EXCHANGE, True), (AttemptKind.LATE_ANSWER, True)],
)
async def test_every_key_that_the_answer_needs_is_held_before_the_intent(
    worker: Worker, connection: Connection, kind: AttemptKind, intake: bool
):
    use = await worker.begin(connection, kind)
    assert use.keys.current(Lane.LEASE).id != use.keys.current(Lane.REFRESH).id
    assert (Lane.INTAKE in repr(use.keys)) is intake


async def test_a_full_disk_is_found_before_the_intent(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    def full(attempt: object) -> None:
        raise Failure(Code.JOURNAL_UNAVAILABLE)

    monkeypatch.setattr(worker.journal, "reserve", full)
    with fails(Code.JOURNAL_UNAVAILABLE):
        await worker.begin(connection)
    assert await opened(store, connection) is None


async def test_nothing_is_begun_for_a_credential_that_was_replaced_since_it_was_read(
    store: Store, worker: Worker, connection: Connection
):
    await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    with fails(Code.STORE_CONFLICT, connection.id):
        await worker.begin(connection)
    assert await opened(store, connection) is None
    assert worker.files() == [], "its room is given back"


async def test_nothing_is_begun_for_a_connection_that_was_given_up_since_it_was_read(
    store: Store, worker: Worker, connection: Connection
):
    async with store.write() as tx:
        condemned = connection.rejected(Code.GRANT_REJECTED, NOW)
        await tx.connections.replace(condemned, expected=connection.revision)
    with fails(Code.STORE_CONFLICT):
        await worker.begin(connection)
    assert worker.files() == []


async def test_nothing_is_begun_for_a_row_that_is_gone(worker: Worker, connection: Connection):
    gone = connection.model_copy(update={"id": "con_0000000000000000000000"})
    with fails(Code.STORE_CONFLICT):
        await worker.begin(gone)


# --- taking over ----------------------------------------------------------------------------


async def test_a_use_that_is_under_way_is_waited_for(
    store: Store, worker: Worker, neighbour: Worker, connection: Connection
):
    first = await worker.begin(connection, rules=NO_ROTATION)
    with pytest.raises(Failure) as caught:
        await neighbour.begin(connection, rules=NO_ROTATION)
    assert caught.value.code is Code.REFRESH_PENDING
    assert caught.value.retry_after == LIMITS.look_again.total_seconds()
    assert "no known outcome" in caught.value.detail
    assert await opened(store, connection) == first.attempt
    assert neighbour.files() == [".room"], "its own is given back, the other's stays"


async def test_an_owner_that_died_before_it_sent_made_no_use(
    store: Store, worker: Worker, neighbour: Worker, connection: Connection
):
    first = await worker.begin(connection)
    await worker.dies(first, sent=False)
    second = await neighbour.begin(connection, token_valid=True)
    assert (second.attempt.sends, second.attempt.asked_at) == (1, None)
    ended = await row(store, first.attempt)
    assert (ended.outcome, ended.closed_at) == (Outcome.NOT_SENT, NOW)


@pytest.mark.parametrize("rules", [STRICT, NO_ROTATION, RefreshRules(rotation=Rotation.GRACE, grace_s=30)])
async def test_a_use_of_an_owner_that_died_is_counted(
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
    assert (second.attempt.sends, second.attempt.asked_at) == (2, NOW)
    ended = await row(store, first.attempt)
    assert (ended.outcome, ended.closed_at) == (Outcome.SUPERSEDED, NOW + timedelta(seconds=10))
    assert await opened(store, connection) == second.attempt


async def test_a_use_on_another_host_is_waited_for_until_nobody_needs_its_answer_any_more(
    store: Store,
    worker: Worker,
    far: Worker,
    connection: Connection,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):
    counted: list[str] = []
    monkeypatch.setattr(metrics, "sent_twice", counted.append)
    await far.begin(connection)
    clock.advance(OVER.total_seconds() - 1)
    with fails(Code.REFRESH_PENDING):
        await worker.begin(connection, token_valid=False)
    clock.advance(2)
    with fails(Code.REFRESH_PENDING):
        await worker.begin(connection, token_valid=True)
    assert counted == []
    second = await worker.begin(connection, token_valid=False)
    assert second.attempt.sends == 2
    assert counted == ["possible"], "it may have been stopped just before it sent"


@pytest.mark.parametrize("rules", [NO_ROTATION, STRICT])
async def test_what_harms_nobody_is_not_counted_as_sent_twice(
    worker: Worker,
    neighbour: Worker,
    far: Worker,
    connection: Connection,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
    rules: RefreshRules,
):
    counted: list[str] = []
    monkeypatch.setattr(metrics, "sent_twice", counted.append)
    if rules is NO_ROTATION:
        await far.begin(connection)
    else:
        await worker.dies(await worker.begin(connection), sent=True)
    clock.advance(OVER.total_seconds() + 1)
    assert (await neighbour.begin(connection, rules=rules)).attempt.sends == 2
    assert counted == []


async def test_a_worker_that_was_stopped_past_every_deadline_is_fenced_off(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    hasty = Worker(store, clock, host, Limits(send=timedelta(0), answer=timedelta(0)))
    stopped = await worker.begin(connection)
    assert not hasty.single_use.fate(stopped.attempt).in_flight
    assert worker.single_use.fate(stopped.attempt).in_flight, "it knows better of itself"
    clock.advance(OVER.total_seconds() + 1)
    second = await hasty.begin(connection)
    assert second.attempt.sends == 2
    assert stopped.room is not None
    assert not stopped.room.enter(), "it sends no more"


async def test_a_neighbour_that_is_within_its_deadline_is_under_way(
    worker: Worker, neighbour: Worker, connection: Connection
):
    use = await worker.begin(connection)
    assert neighbour.single_use.fate(use.attempt).in_flight
    await worker.spend(use, Told(worker.journal))
    assert not neighbour.single_use.fate(use.attempt).in_flight
    assert not worker.single_use.fate(use.attempt).in_flight


async def test_the_deadline_of_a_stopped_neighbour_is_the_answers(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    use = await worker.begin(connection)
    for send, answer in ((0, 3600), (3600, 0)):
        limits = Limits(send=timedelta(seconds=send), answer=timedelta(seconds=answer))
        assert Worker(store, clock, host, limits).single_use.fate(use.attempt).in_flight


async def test_a_worker_in_the_instant_of_sending_is_not_overtaken(
    store: Store, worker: Worker, connection: Connection, clock: SetClock, host: Path
):
    hasty = Worker(store, clock, host, Limits(send=timedelta(0), answer=timedelta(0)))
    use = await worker.begin(connection)
    assert use.room is not None
    assert use.room.enter()
    clock.advance(OVER.total_seconds() + 1)
    with fails(Code.REFRESH_PENDING, "in the instant of sending"):
        await hasty.begin(connection)
    assert await opened(store, connection) == use.attempt


async def test_a_credential_that_was_sent_as_often_as_it_may_be_is_not_sent_again(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    use = await worker.begin(connection)
    async with store.write() as tx:
        await tx.attempts.close(use.attempt, Outcome.NOT_SENT, NOW)
        often = use.attempt.model_copy(update={"id": "att_often", "sends": MOST_SENDS})
        await tx.attempts.open(often)
        await tx.attempts.close(often, Outcome.SUPERSEDED, NOW)
    with fails(Code.OUTCOME_UNKNOWN, "as often as it may be"):
        await worker.begin(connection)
    assert (await worker.begin(connection, rules=NO_ROTATION)).attempt.sends == MOST_SENDS + 1


async def test_an_answer_that_waits_in_a_journal_is_not_asked_for_again(
    worker: Worker, neighbour: Worker, connection: Connection, clock: SetClock
):
    use = await worker.begin(connection)
    assert use.room is not None
    use.room.keep(use.keys.current(Lane.REFRESH), b"an answer")
    await worker.dies(use, sent=False)
    clock.advance(3600)
    with fails(Code.REFRESH_PENDING):
        await neighbour.begin(connection, rules=NO_ROTATION)


async def test_an_attempt_from_the_future_is_waited_for_as_long_as_an_answer_takes(
    store: Store, worker: Worker, far: Worker, connection: Connection, clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Its host's clock was a day ahead. Ours gets there tomorrow, and nobody waits for that."""
    machine = 1000.0
    monkeypatch.setattr(single_use, "elapsed", lambda: machine)
    clock.advance(86_400)
    ahead = (await far.begin(connection)).attempt
    clock.advance(-86_400)
    assert worker.single_use.may_answer(ahead), "seen for the first time"
    machine += OVER.total_seconds() - 1
    assert worker.single_use.may_answer(ahead)
    with fails(Code.REFRESH_PENDING):
        await worker.begin(connection)
    machine += 2
    assert not worker.single_use.may_answer(ahead)
    assert (await worker.begin(connection)).attempt.sends == 2
    assert (await row(store, ahead)).outcome is Outcome.SUPERSEDED


async def test_of_attempts_from_the_future_no_more_than_so_many_are_remembered(
    worker: Worker, far: Worker, connection: Connection, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    machine = 1000.0
    monkeypatch.setattr(single_use, "elapsed", lambda: machine)
    monkeypatch.setattr(single_use, "_MOST_AHEAD", 2)
    clock.advance(86_400)
    ahead = (await far.begin(connection)).attempt
    clock.advance(-86_400)

    def another(name: str) -> None:
        assert worker.single_use.may_answer(ahead.model_copy(update={"id": name}))

    assert worker.single_use.may_answer(ahead)
    another("att_1")
    machine += OVER.total_seconds() + 1
    assert not worker.single_use.may_answer(ahead), "remembered, also when there is room for no more"
    another("att_2")
    assert worker.single_use.may_answer(ahead), "forgotten: it is waited for anew"


@pytest.mark.parametrize("after", [timedelta(0), OVER - timedelta(seconds=1)])
async def test_what_may_come_of_an_attempt_has_to_be_waited_for(
    worker: Worker, far: Worker, connection: Connection, clock: SetClock, after: timedelta
):
    use = await far.begin(connection)
    clock.advance(after.total_seconds())
    assert worker.single_use.may_answer(use.attempt)
    assert far.single_use.may_answer(use.attempt)
    clock.advance((OVER - after).total_seconds() + 1)
    assert not worker.single_use.may_answer(use.attempt)
    assert far.single_use.may_answer(use.attempt), "it is under way there"


async def test_an_answer_that_nobody_can_read_is_not_waited_for_for_ever(
    worker: Worker, neighbour: Worker, connection: Connection, clock: SetClock
):
    use = await worker.begin(connection)
    assert use.room is not None
    use.room.keep(use.keys.current(Lane.REFRESH), b"an answer")
    await worker.dies(use, sent=False)
    clock.advance((OVER + LIMITS.replay).total_seconds() - 1)
    assert neighbour.single_use.may_answer(use.attempt)
    clock.advance(2)
    assert not neighbour.single_use.may_answer(use.attempt)


# --- the critical section -------------------------------------------------------------------


async def test_an_answer_is_on_disk_before_it_is_committed_and_gone_afterwards(
    worker: Worker, connection: Connection
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert await worker.spend(use, told) == "at-2"
    assert told.entries == [f"{use.attempt.id}.entry"]
    (committed,) = told.committed
    assert (committed.attempt, committed.keys) == (use.attempt, use.keys)
    assert committed.entry is not None
    assert told.settled == []
    assert worker.files() == []


@pytest.mark.parametrize("provisional", [True, False])
async def test_the_journal_keeps_the_answer_as_it_came_and_what_it_answers(
    worker: Worker, connection: Connection, provisional: bool
):
    async def away() -> None:
        raise Failure(Code.KEY_UNAVAILABLE)

    use, told = await worker.begin(connection), Told(worker.journal, commits=away)
    with fails(Code.KEY_UNAVAILABLE):
        await worker.spend(use, told, provisional=provisional)
    assert worker.files() == [".entry"], "whatever raises, the answer isn't lost"
    entry = worker.journal.entry(use.attempt)
    assert entry is not None
    packed = open_sealed(use.keys.current(Lane.REFRESH), entry.header.place, entry.sealed)
    answer = Answer.unpacked(packed)
    assert (answer.reply, answer.came_at, answer.provisional) == (YES, NOW, provisional)
    assert answer.order == an_order(use).model_dump(mode="json")


@pytest.mark.parametrize(("sent", "outcome"), [(True, None), (False, Outcome.NOT_SENT)])
async def test_without_an_answer_only_what_never_left_is_unused(
    worker: Worker, connection: Connection, sent: bool, outcome: Outcome | None
):
    use, told = await worker.begin(connection), Told(worker.journal)
    failed = SendFailed(Failure(Code.PROVIDER_UNREACHABLE), sent=sent)
    assert await worker.spend(use, told, failed) == Code.PROVIDER_UNREACHABLE
    assert told.settled == [(Code.PROVIDER_UNREACHABLE, outcome)]
    assert worker.files() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(Code.INVALID_REQUEST, Code.CLIENT_REJECTED), (Code.KEY_UNAVAILABLE, Code.KEY_UNAVAILABLE)],
)
async def test_a_definition_that_does_not_fit_is_the_integrations_and_no_callers(
    worker: Worker, connection: Connection, wrong: Code, said: Code
):
    use, told = await worker.begin(connection), Told(worker.journal)
    why: list[str] = []
    ending = told.ending()
    settle = ending.settle

    async def kept(use: object, failure: Failure, outcome: Outcome | None) -> str:
        why.append(failure.detail)
        return await settle(use, failure, outcome)  # type: ignore[arg-type]  # passed on as it came

    async def send(check: BeforeSend) -> RawReply:
        raise Failure(wrong, "no field for the scopes")

    object.__setattr__(ending, "settle", kept)
    await worker.single_use.spend(use, an_order(use), send=send, ending=ending)
    assert told.settled == [(said, Outcome.NOT_SENT)]
    assert why == ["no field for the scopes"]


async def test_after_an_error_of_ours_nobody_knows_whether_it_left_and_no_log_quotes_it(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    use, told = await worker.begin(connection), Told(worker.journal)
    await worker.spend(use, told, ValueError("rt-1"))
    assert told.settled == [(Code.INTERNAL, None)]
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "ValueError at " in said.getMessage()
    assert "protocol_worker.py" in said.getMessage()
    assert use.attempt.id in str(said.__dict__)
    assert said.levelno == logging.ERROR
    assert "rt-1" not in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (400, Code.GRANT_REJECTED, Outcome.REFUSED),
        (200, Code.GRANT_REJECTED, Outcome.REFUSED),
        (503, Code.GRANT_REJECTED, Outcome.REFUSED),
        (400, Code.CLIENT_REJECTED, Outcome.REFUSED),
        (200, Code.CLIENT_REJECTED, Outcome.REFUSED),
        (200, Code.REPLY_UNREADABLE, None),
        (500, Code.PROVIDER_UNREACHABLE, None),
        (503, Code.PROVIDER_UNREACHABLE, Outcome.NOT_SENT),
        (400, Code.PROVIDER_RATE_LIMITED, Outcome.NOT_SENT),
    ],
)
async def test_an_answer_without_tokens_says_what_became_of_the_credential(
    worker: Worker, connection: Connection, status: int, code: Code, outcome: Outcome | None
):
    use, told = await worker.begin(connection), Told(worker.journal, judge=refusing(code))
    assert await worker.spend(use, told, RawReply(status, {}, b"")) == code
    assert (told.settled, told.committed) == ([(code, outcome)], [])


async def test_an_answer_that_makes_the_judge_fail_is_kept(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    def judge(reply: RawReply) -> None:
        raise KeyError("at-2")

    use, told = await worker.begin(connection), Told(worker.journal, judge=judge)  # type: ignore[arg-type]  # it never returns
    with fails(Code.INTERNAL, "the journal keeps it"):
        await worker.spend(use, told)
    assert worker.files() == [".entry"]
    assert "KeyError at " in caplog.text
    assert "at-2" not in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "most", "left"),
    [
        (200, Code.REPLY_UNREADABLE, 1, [".set-aside"]),
        (299, Code.REPLY_UNREADABLE, 1, [".set-aside"]),
        (200, Code.REPLY_UNREADABLE, 0, []),
        (300, Code.REPLY_UNREADABLE, 1, []),
        (199, Code.REPLY_UNREADABLE, 1, []),
        (500, Code.REPLY_UNREADABLE, 1, []),
        (200, Code.GRANT_REJECTED, 1, []),
    ],
)
async def test_a_yes_that_nobody_can_read_is_set_aside(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch,
    status: int, code: Code, most: int, left: list[str],
):  # fmt: skip
    monkeypatch.setattr(single_use, "_MOST_SET_ASIDE", most)
    use, told = await worker.begin(connection), Told(worker.journal, judge=refusing(code))
    await worker.spend(use, told, RawReply(status, {}, b"<p>"))
    assert worker.files() == left


async def test_a_disk_that_broke_since_the_intent_stops_no_commit(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert use.room is not None

    def broken(key: object, answer: bytes) -> Entry:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(use.room, "keep", broken)
    assert await worker.spend(use, told) == "at-2"
    assert worker.files() == []
    (committed,) = told.committed
    assert committed.entry is None
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "Input/output error" in said.getMessage()
    assert said.levelno == logging.ERROR
    assert use.attempt.id in str(said.__dict__)

    def odd(key: object, answer: bytes) -> Entry:
        raise OSError

    caplog.clear()
    again = await worker.begin(connection, AttemptKind.MINT, rules=NO_ROTATION)
    monkeypatch.setattr(again.room, "keep", odd)
    await worker.spend(again, told)
    assert "OSError" in caplog.text


async def test_nothing_cuts_a_use_between_its_send_and_its_commit(worker: Worker, connection: Connection):
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await let_go.wait()

    use, told = await worker.begin(connection), Told(worker.journal, commits=slow)
    activity = asyncio.create_task(worker.spend(use, told))
    await asked.wait()
    activity.cancel()
    with pytest.raises(asyncio.CancelledError):
        await activity
    assert worker.single_use.fate(use.attempt).in_flight, "the process owns it"
    let_go.set()
    await worker.sections.drain()
    assert len(told.committed) == 1
    assert worker.files() == []


async def test_a_use_that_was_stopped_before_it_sent_does_not_send(
    store: Store, clock: SetClock, host: Path, connection: Connection
):
    late = Worker(store, clock, host, Limits(send=timedelta(0), look_again=timedelta(seconds=7)))
    use, told = await late.begin(connection), Told(late.journal)
    left: list[bool] = []

    async def send(check: BeforeSend) -> RawReply:
        written = check()
        left.append(True)
        written()
        return YES

    ending = told.ending()
    assert await late.single_use.spend(use, an_order(use), send=send, ending=ending) == Code.REFRESH_PENDING
    assert left == []
    assert told.settled == [(Code.REFRESH_PENDING, Outcome.NOT_SENT)]


async def test_an_answer_from_a_journal_is_judged_like_one_that_has_just_come(
    worker: Worker, connection: Connection
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert use.room is not None
    entry = use.room.keep(use.keys.current(Lane.REFRESH), b"an answer")
    replayed = single_use.Use(use.attempt, use.keys, entry=entry)
    assert await worker.single_use.conclude(replayed, YES, told.ending()) == "at-2"
    assert told.committed == [replayed]
    assert worker.files() == []
    refused = Told(worker.journal, judge=refusing(Code.GRANT_REJECTED))
    await worker.single_use.conclude(single_use.Use(use.attempt, use.keys), NO, refused.ending())
    assert refused.settled == [(Code.GRANT_REJECTED, Outcome.REFUSED)]
