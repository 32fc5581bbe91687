"""The critical section, from the last check to the dropped entry: a real store and journal, no provider.

That the rules are enough is the model's to say (tests/unit/core/test_protocol_model.py), that they
hold while processes die the harness's (tests/faults/harness). Here each line has a test that notices.
"""

import asyncio
import logging
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from activities import sending, single_use
from activities.answers import Answer
from evergrant_server import audit
from evergrant_server.core.attempt import AttemptKind, Limits, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SetClock, elapsed
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.crypto import Lane, open_sealed
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import Entry
from evergrant_server.store import Store
from providers.flows import SendFailed
from providers.reply import RawReply
from tests.conformance.store.samples import granted
from tests.fakes.databases import NOW
from tests.unit.activities.protocol_worker import (
    NO,
    NO_ROTATION,
    YES,
    Told,
    Worker,
    an_order,
    fails,
    refusing,
    unread,
)


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
    assert [attempt for attempt, _ in told.failures] == [use.attempt.id]
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
    assert [attempt for attempt, _ in told.failures] == [use.attempt.id]


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
    "kind",
    [AttemptKind.REFRESH, AttemptKind.LATE_ANSWER, AttemptKind.CODE_EXCHANGE, AttemptKind.DEVICE_CODE],
)
@pytest.mark.parametrize("token_valid", [True, False])
async def test_what_tokens_that_nobody_can_read_were_asked_with_is_not_sent_again(
    store: Store,
    worker: Worker,
    far: Worker,
    connection: Connection,
    clock: SetClock,
    kind: AttemptKind,
    token_valid: bool,
):
    """A second use would end them, and a definition that is repaired reads them."""
    use, told = await worker.begin(connection, kind), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    assert told.settled == [(Code.REPLY_UNREADABLE, Outcome.UNREAD)]
    async with store.write() as tx:
        await tx.attempts.close(use.attempt, Outcome.UNREAD, NOW)  # as its ending does
    clock.advance(86_400)
    for one in (worker, far):
        with fails(Code.REPLY_UNREADABLE, "until its definition can read it"):
            await one.begin(connection, kind, token_valid=token_valid)
    assert worker.files() == [".set-aside"]
    assert (await far.begin(connection, kind, rules=NO_ROTATION)).attempt.sends == 2


async def test_what_may_be_asked_for_again_with_the_same_is_not_kept(worker: Worker, connection: Connection):
    use = await worker.begin(connection, AttemptKind.MINT)
    told = Told(worker.journal, judge=unread, spends=False)
    await worker.spend(use, told)
    assert told.settled == [(Code.REPLY_UNREADABLE, None)]
    assert worker.files() == []


async def test_a_later_use_that_nobody_heard_of_doesn_t_release_what_waits_to_be_read(
    store: Store, worker: Worker, connection: Connection, clock: SetClock
):
    """Inside its grace the provider takes the token again; after it a further use would end those tokens."""
    rules = RefreshRules(rotation=Rotation.GRACE, grace_s=60)
    use, told = await worker.begin(connection, rules=rules), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    async with store.write() as tx:
        await tx.attempts.close(use.attempt, Outcome.UNREAD, NOW)  # as its ending does
    again = await worker.begin(connection, rules=rules)
    assert again.attempt.sends == 2
    await worker.spend(again, told, SendFailed(Failure(Code.PROVIDER_UNREACHABLE), sent=True))
    clock.advance(86_400)
    with fails(Code.REPLY_UNREADABLE, "until its definition can read it"):
        await worker.begin(connection, rules=rules)


async def test_tokens_that_there_is_no_room_to_keep_hold_nothing_up(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(single_use, "_MOST_SET_ASIDE", 0)
    use, told = await worker.begin(connection), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    assert told.settled == [(Code.REPLY_UNREADABLE, None)]
    assert worker.files() == []


async def test_what_was_set_aside_is_read_later_or_left_alone(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    use, told = await worker.begin(connection), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "a lifetime that is a string" in said.getMessage()
    assert {Code.REPLY_UNREADABLE, use.attempt.id} <= set(map(str, said.__dict__.values()))
    (path,) = worker.journal.folder.glob("*/*.set-aside")
    kept = single_use.Use(use.attempt, use.keys, entry=Entry.read(path))
    again = Told(worker.journal, judge=unread)
    with fails(Code.REPLY_UNREADABLE):
        await worker.single_use.conclude(kept, YES, again.ending())
    assert (again.settled, worker.files()) == ([], [".set-aside"])
    repaired = Told(worker.journal)
    assert await worker.single_use.conclude(kept, YES, repaired.ending()) == "at-2"
    assert worker.files() == []


async def test_an_answer_in_hand_waits_for_no_name_server(worker: Worker, connection: Connection):
    """The event loop's threads are also the resolver's, and a name that hangs keeps one for long."""
    use, told, hangs = await worker.begin(connection), Told(worker.journal), threading.Event()
    loop = asyncio.get_running_loop()
    stuck = [loop.run_in_executor(None, hangs.wait) for _ in range(64)]
    try:
        async with asyncio.timeout(20):
            assert await worker.spend(use, told) == "at-2"
    finally:
        hangs.set()
        await asyncio.gather(*stuck)


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
    assert [failure.retry_after for _, failure in told.failures] == [7]


async def test_a_use_that_goes_on_after_a_takeover_is_recorded(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    machine = elapsed()
    monkeypatch.setattr(sending, "elapsed", lambda: machine)
    use, told = await worker.begin(connection), Told(worker.journal)

    async def send(check: BeforeSend) -> RawReply:
        nonlocal machine
        check()()
        machine += 60
        async with store.write() as tx:
            await tx.attempts.close(use.attempt, Outcome.SUPERSEDED, NOW)
        return YES

    await worker.single_use.spend(use, an_order(use), send=send, ending=told.ending())
    async with store.read() as tx:
        (said,) = await audit.page(tx, connection.tenant, object=connection.id, limit=9)
    assert (said.action, said.asked, said.detail["attempt"]) == (
        AuditAction.SENT_TWICE,
        an_order(use).asked,
        use.attempt.id,
    )


async def test_what_is_under_way_for_a_connection_is_found(
    store: Store, worker: Worker, connection: Connection
):
    other = await granted(store, subject="user-2")
    use = await worker.begin(connection)
    async with store.read() as tx:
        assert await single_use.open_attempt(tx, connection) == use.attempt
        assert await single_use.open_attempt(tx, other) is None


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
