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

from activities.single_use import protocol, send_fence
from activities.single_use.attempt_tracker import open_attempt
from activities.single_use.journaled_reply import JournaledReply
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SetClock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.refresh_rules import RefreshRules, Rotation
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose, open_sealed
from evergrant_server.journal import JournalEntry
from evergrant_server.store import Store
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply
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
    journaled,
    refusing,
    unread,
)


async def test_an_answer_is_on_disk_before_it_is_committed_and_gone_afterwards(
    worker: Worker, connection: Connection
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert await worker.spend(use, told) == "at-2"
    assert told.entries == [f"{use.row.id}.entry"]
    (committed,) = told.committed
    assert (committed.row, committed.keys) == (use.row, use.keys)
    assert committed.entry is not None
    assert told.settled == []
    assert worker.files() == []


@pytest.mark.parametrize("provisional", [True, False])
async def test_the_journal_keeps_the_answer_as_it_came_and_what_it_answers(
    worker: Worker, connection: Connection, provisional: bool
):
    async def away() -> None:
        raise Failure(ErrorCode.KEY_UNAVAILABLE)

    use, told = await worker.begin(connection), Told(worker.journal, commits=away)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await worker.spend(use, told, provisional=provisional)
    assert worker.files() == [".entry"], "whatever raises, the answer isn't lost"
    entry = worker.journal.entry(use.row)
    assert entry is not None
    packed = open_sealed(use.keys.current(KeyPurpose.REFRESH), entry.header.associated_data, entry.sealed)
    answer = JournaledReply.unpack(packed)
    assert (answer.reply, answer.came_at, answer.provisional) == (YES, NOW, provisional)
    assert answer.request == an_order(use).model_dump(mode="json")


@pytest.mark.parametrize(("sent", "outcome"), [(True, None), (False, AttemptOutcome.NOT_SENT)])
async def test_without_an_answer_only_what_never_left_is_unused(
    worker: Worker, connection: Connection, sent: bool, outcome: AttemptOutcome | None
):
    use, told = await worker.begin(connection), Told(worker.journal)
    failed = SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=sent)
    assert await worker.spend(use, told, failed) == ErrorCode.PROVIDER_UNREACHABLE
    assert told.settled == [(ErrorCode.PROVIDER_UNREACHABLE, outcome)]
    assert [attempt for attempt, _ in told.failures] == [use.row.id]
    assert worker.files() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ErrorCode.INVALID_REQUEST, ErrorCode.CLIENT_REJECTED),
        (ErrorCode.KEY_UNAVAILABLE, ErrorCode.KEY_UNAVAILABLE),
    ],
)
async def test_a_definition_that_does_not_fit_is_the_integrations_and_no_callers(
    worker: Worker, connection: Connection, wrong: ErrorCode, said: ErrorCode
):
    use, told = await worker.begin(connection), Told(worker.journal)

    async def sending() -> RawReply:
        raise Failure(wrong, "no field for the scopes")

    await worker.single_use.spend(use, an_order(use), sending(), told.ending())
    assert told.settled == [(said, AttemptOutcome.NOT_SENT)]
    assert [failure.detail for _, failure in told.failures] == ["no field for the scopes"]


async def test_after_an_error_of_ours_nobody_knows_whether_it_left_and_no_log_quotes_it(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    use, told = await worker.begin(connection), Told(worker.journal)
    await worker.spend(use, told, ValueError("rt-1"))
    assert told.settled == [(ErrorCode.INTERNAL, None)]
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "ValueError at " in said.getMessage()
    assert "protocol_worker.py" in said.getMessage()
    assert use.row.id in str(said.__dict__)
    assert said.levelno == logging.ERROR
    assert "rt-1" not in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (400, ErrorCode.GRANT_REJECTED, AttemptOutcome.REFUSED),
        (200, ErrorCode.GRANT_REJECTED, AttemptOutcome.REFUSED),
        (503, ErrorCode.GRANT_REJECTED, AttemptOutcome.REFUSED),
        (400, ErrorCode.CLIENT_REJECTED, AttemptOutcome.REFUSED),
        (200, ErrorCode.CLIENT_REJECTED, AttemptOutcome.REFUSED),
        (200, ErrorCode.REPLY_UNREADABLE, None),
        (500, ErrorCode.PROVIDER_UNREACHABLE, None),
        (503, ErrorCode.PROVIDER_UNREACHABLE, AttemptOutcome.NOT_SENT),
        (400, ErrorCode.PROVIDER_RATE_LIMITED, AttemptOutcome.NOT_SENT),
    ],
)
async def test_an_answer_without_tokens_says_what_became_of_the_credential(
    worker: Worker, connection: Connection, status: int, code: ErrorCode, outcome: AttemptOutcome | None
):
    use, told = await worker.begin(connection), Told(worker.journal, judge=refusing(code))
    assert await worker.spend(use, told, RawReply(status, {}, b"")) == code
    assert (told.settled, told.committed) == ([(code, outcome)], [])
    assert [attempt for attempt, _ in told.failures] == [use.row.id]


async def test_an_answer_that_makes_the_judge_fail_is_kept(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    def judge(reply: RawReply) -> None:
        raise KeyError("at-2")

    use, told = await worker.begin(connection), Told(worker.journal, judge=judge)  # type: ignore[arg-type]  # it never returns
    with fails(ErrorCode.INTERNAL, "the journal keeps it"):
        await worker.spend(use, told)
    assert worker.files() == [".entry"]
    assert "KeyError at " in caplog.text
    assert "at-2" not in caplog.text


@pytest.mark.parametrize(
    "kind",
    [AttemptKind.REFRESH, AttemptKind.LATE_TOKENS, AttemptKind.CODE_EXCHANGE, AttemptKind.DEVICE_CODE],
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
    assert told.settled == [(ErrorCode.REPLY_UNREADABLE, AttemptOutcome.UNREAD)]
    async with store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.UNREAD, NOW)  # as its ending does
    clock.advance(86_400)
    for one in (worker, far):
        with fails(ErrorCode.REPLY_UNREADABLE, "until its definition can read it"):
            await one.begin(connection, kind, token_valid=token_valid)
    assert worker.files() == [".set-aside"]
    assert (await far.begin(connection, kind, rules=NO_ROTATION)).row.sends == 2


async def test_what_may_be_asked_for_again_with_the_same_is_not_kept(worker: Worker, connection: Connection):
    use = await worker.begin(connection, AttemptKind.CLIENT_GRANT)
    told = Told(worker.journal, judge=unread, spends=False)
    await worker.spend(use, told)
    assert told.settled == [(ErrorCode.REPLY_UNREADABLE, None)]
    assert worker.files() == []


async def test_a_later_use_that_nobody_heard_of_doesn_t_release_what_waits_to_be_read(
    store: Store, worker: Worker, connection: Connection, clock: SetClock
):
    """Inside its grace the provider takes the token again; after it a further use would end those tokens."""
    rules = RefreshRules(rotation=Rotation.GRACE, grace_s=60)
    use, told = await worker.begin(connection, rules=rules), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    async with store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.UNREAD, NOW)  # as its ending does
    again = await worker.begin(connection, rules=rules)
    assert again.row.sends == 2
    await worker.spend(again, told, SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=True))
    clock.advance(86_400)
    with fails(ErrorCode.REPLY_UNREADABLE, "until its definition can read it"):
        await worker.begin(connection, rules=rules)


async def test_tokens_that_there_is_no_room_to_keep_hold_nothing_up(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "_MAX_SET_ASIDE", 0)
    use, told = await worker.begin(connection), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    assert told.settled == [(ErrorCode.REPLY_UNREADABLE, None)]
    assert worker.files() == []


async def test_what_was_set_aside_is_read_later_or_left_alone(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture
):
    use, told = await worker.begin(connection), Told(worker.journal, judge=unread)
    await worker.spend(use, told)
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "a lifetime that is a string" in said.getMessage()
    assert {ErrorCode.REPLY_UNREADABLE, use.row.id} <= set(map(str, said.__dict__.values()))
    (path,) = worker.journal.folder.glob("*/*.set-aside")
    kept = protocol.SingleUseAttempt(use.row, use.keys, entry=JournalEntry.read(path))
    again = Told(worker.journal, judge=unread)
    with fails(ErrorCode.REPLY_UNREADABLE):
        await worker.single_use.conclude(kept, journaled(kept), again.ending())
    assert (again.settled, worker.files()) == ([], [".set-aside"])
    repaired = Told(worker.journal)
    assert await worker.single_use.conclude(kept, journaled(kept), repaired.ending()) == "at-2"
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
        (200, ErrorCode.REPLY_UNREADABLE, 1, [".set-aside"]),
        (299, ErrorCode.REPLY_UNREADABLE, 1, [".set-aside"]),
        (200, ErrorCode.REPLY_UNREADABLE, 0, []),
        (300, ErrorCode.REPLY_UNREADABLE, 1, []),
        (199, ErrorCode.REPLY_UNREADABLE, 1, []),
        (500, ErrorCode.REPLY_UNREADABLE, 1, []),
        (200, ErrorCode.GRANT_REJECTED, 1, []),
    ],
)
async def test_a_yes_that_nobody_can_read_is_set_aside(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch,
    status: int, code: ErrorCode, most: int, left: list[str],
):  # fmt: skip
    monkeypatch.setattr(protocol, "_MAX_SET_ASIDE", most)
    use, told = await worker.begin(connection), Told(worker.journal, judge=refusing(code))
    await worker.spend(use, told, RawReply(status, {}, b"<p>"))
    assert worker.files() == left


async def test_a_disk_that_broke_since_the_intent_stops_no_commit(
    worker: Worker, connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert use.reservation is not None

    def broken(key: object, answer: bytes) -> JournalEntry:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(use.reservation, "write_entry", broken)
    assert await worker.spend(use, told) == "at-2"
    assert worker.files() == []
    (committed,) = told.committed
    assert committed.entry is None
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "Input/output error" in said.getMessage()
    assert said.levelno == logging.ERROR
    assert use.row.id in str(said.__dict__)

    def odd(key: object, answer: bytes) -> JournalEntry:
        raise OSError

    caplog.clear()
    again = await worker.begin(connection, AttemptKind.CLIENT_GRANT, rules=NO_ROTATION)
    monkeypatch.setattr(again.reservation, "write_entry", odd)
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
    assert worker.single_use.tracker.status_of(use.row).in_flight, "the process owns it"
    let_go.set()
    await worker.sections.drain()
    assert len(told.committed) == 1
    assert worker.files() == []


async def test_a_use_that_was_stopped_before_it_sent_does_not_send(
    store: Store, clock: SetClock, host: Path, connection: Connection
):
    late = Worker(store, clock, host, TimeLimits(send=timedelta(0), poll_interval=timedelta(seconds=7)))
    use, told = await late.begin(connection), Told(late.journal)
    left: list[bool] = []

    async def sending() -> RawReply:
        written = use.check()
        left.append(True)
        written()
        return YES

    said = await late.single_use.spend(use, an_order(use), sending(), told.ending())
    assert said == ErrorCode.REFRESH_PENDING
    assert left == []
    assert told.settled == [(ErrorCode.REFRESH_PENDING, AttemptOutcome.NOT_SENT)]
    assert [failure.retry_after for _, failure in told.failures] == [7]


async def test_a_use_that_goes_on_after_a_takeover_is_recorded(
    store: Store, worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
):
    machine = seconds_since_boot()
    monkeypatch.setattr(send_fence, "seconds_since_boot", lambda: machine)
    use, told = await worker.begin(connection), Told(worker.journal)

    async def sending() -> RawReply:
        nonlocal machine
        use.check()()
        machine += 60
        async with store.write() as tx:
            await tx.attempts.close(use.row, AttemptOutcome.SUPERSEDED, NOW)
        return YES

    await worker.single_use.spend(use, an_order(use), sending(), told.ending())
    async with store.read() as tx:
        (said,) = await audit.page(tx, connection.tenant, object=connection.id, limit=9)
    assert (said.action, said.context, said.detail["attempt"]) == (
        AuditAction.SENT_TWICE,
        an_order(use).context,
        use.row.id,
    )


async def test_what_is_under_way_for_a_connection_is_found(
    store: Store, worker: Worker, connection: Connection
):
    other = await granted(store, subject="user-2")
    use = await worker.begin(connection)
    async with store.read() as tx:
        assert await open_attempt(tx, connection) == use.row
        assert await open_attempt(tx, other) is None


async def test_an_answer_from_a_journal_is_judged_like_one_that_has_just_come(
    worker: Worker, connection: Connection
):
    use, told = await worker.begin(connection), Told(worker.journal)
    assert use.reservation is not None
    entry = use.reservation.write_entry(use.keys.current(KeyPurpose.REFRESH), b"an answer")
    replayed = protocol.SingleUseAttempt(use.row, use.keys, entry=entry)
    assert await worker.single_use.conclude(replayed, journaled(replayed), told.ending()) == "at-2"
    assert told.committed == [replayed]
    assert worker.files() == []
    refused = Told(worker.journal, judge=refusing(ErrorCode.GRANT_REJECTED))
    without_entry = protocol.SingleUseAttempt(use.row, use.keys)
    await worker.single_use.conclude(without_entry, journaled(use, NO), refused.ending())
    assert refused.settled == [(ErrorCode.GRANT_REJECTED, AttemptOutcome.REFUSED)]
