"""The critical section, from the last check to the dropped entry: a real store and journal, no provider.

That the rules are enough is the model's to say (tests/unit/core/single_use/test_protocol_model.py), that they
hold while processes die the harness's (tests/faults/harness). Here each line has a test that notices.
"""

import asyncio
import logging
import threading
from datetime import timedelta

import pytest

from activities.single_use import attempt as single_use_attempt
from activities.single_use import protocol
from activities.single_use.attempt import JournaledReply, SingleUseAttempt
from activities.single_use.intent import CriticalSections
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose, open_sealed
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import JournalEntry
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.unit.activities.single_use.protocol_worker import (
    NO_ROTATION,
    YES,
    Judge,
    RecordedOutcome,
    Worker,
    a_request,
    journaled,
    refusing,
    reservation_of,
    unread,
)


async def test_a_reply_is_in_the_journal_until_it_is_committed(worker: Worker):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)
    assert await worker.spend(use, recorded) == "at-2"
    assert recorded.entries == [f"{use.row.id}.entry"]
    (committed,) = recorded.committed
    assert (committed.row, committed.keys) == (use.row, use.keys)
    assert committed.entry is not None
    assert recorded.failed == []
    assert worker.files() == []


@pytest.mark.parametrize("provisional", [True, False])
async def test_the_journal_keeps_the_raw_reply_and_its_request(worker: Worker, provisional: bool):
    async def away() -> None:
        raise Failure(ErrorCode.KEY_UNAVAILABLE)

    use = await worker.begin()
    recorded = RecordedOutcome(worker.journal, commits=away, provisional=provisional)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await worker.spend(use, recorded)
    assert worker.files() == [".entry"], "whatever raises, the answer isn't lost"
    (path,) = worker.journal.own_paths()
    entry = JournalEntry.read(path)
    packed = open_sealed(use.keys.current(KeyPurpose.REFRESH), entry.header.associated_data, entry.sealed)
    answer = JournaledReply.unpack(packed)
    assert (answer.reply, answer.came_at, answer.provisional) == (YES, NOW, provisional)
    assert answer.request == a_request(use).model_dump(mode="json")


@pytest.mark.parametrize(("sent", "outcome"), [(True, None), (False, AttemptOutcome.NOT_SENT)])
async def test_without_a_reply_only_an_unsent_credential_is_unused(
    worker: Worker, sent: bool, outcome: AttemptOutcome | None
):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)
    failed = SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=sent)
    assert await worker.spend(use, recorded, failed) == ErrorCode.PROVIDER_UNREACHABLE
    assert recorded.failed == [(ErrorCode.PROVIDER_UNREACHABLE, outcome)]
    assert [attempt for attempt, _ in recorded.failures] == [use.row.id]
    assert worker.files() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ErrorCode.INVALID_REQUEST, ErrorCode.CLIENT_REJECTED),
        (ErrorCode.KEY_UNAVAILABLE, ErrorCode.KEY_UNAVAILABLE),
    ],
)
async def test_a_definition_that_does_not_fit_is_client_misconfigured(
    worker: Worker, wrong: ErrorCode, said: ErrorCode
):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)

    async def answer(before_send: BeforeSend) -> RawReply:
        raise Failure(wrong, "no field for the scopes")

    await worker.answered(use, recorded, answer)
    assert recorded.failed == [(said, AttemptOutcome.NOT_SENT)]
    assert [failure.detail for _, failure in recorded.failures] == ["no field for the scopes"]


async def test_an_unexpected_exception_leaves_the_outcome_unknown_and_is_logged_without_its_text(
    worker: Worker, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)
    await worker.spend(use, recorded, ValueError("rt-1"))
    assert recorded.failed == [(ErrorCode.INTERNAL, None)]
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
        (500, ErrorCode.PROVIDER_UNREACHABLE, None),
        (503, ErrorCode.PROVIDER_UNREACHABLE, AttemptOutcome.NOT_SENT),
        (400, ErrorCode.PROVIDER_RATE_LIMITED, AttemptOutcome.NOT_SENT),
    ],
)
async def test_an_error_reply_decides_the_outcome(
    worker: Worker, status: int, code: ErrorCode, outcome: AttemptOutcome | None
):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal, judges=refusing(code))
    assert await worker.spend(use, recorded, RawReply(status, {}, b"")) == code
    assert (recorded.failed, recorded.committed) == ([(code, outcome)], [])
    assert [attempt for attempt, _ in recorded.failures] == [use.row.id]


async def test_a_reply_that_breaks_the_judge_stays_in_the_journal(
    worker: Worker, caplog: pytest.LogCaptureFixture
):
    def judge(reply: RawReply) -> None:
        raise KeyError("at-2")

    use, recorded = await worker.begin(), RecordedOutcome(worker.journal, judges=judge)  # type: ignore[arg-type]  # it never returns
    with fails(ErrorCode.INTERNAL, "the journal keeps it"):
        await worker.spend(use, recorded)
    assert worker.files() == [".entry"]
    assert "KeyError at " in caplog.text
    assert "at-2" not in caplog.text


@pytest.mark.parametrize(
    "kind", [AttemptKind.REFRESH, AttemptKind.LATE_TOKENS, AttemptKind.CODE_EXCHANGE, AttemptKind.DEVICE_CODE]
)
@pytest.mark.parametrize("token_valid", [True, False])
async def test_the_credential_of_unreadable_tokens_is_not_sent_again(
    worker: Worker, far: Worker, kind: AttemptKind, token_valid: bool
):
    """A second use would end them, and a definition that is repaired reads them."""
    use, recorded = await worker.begin(kind), RecordedOutcome(worker.journal, judges=unread)
    await worker.spend(use, recorded)
    assert recorded.failed == [(ErrorCode.REPLY_UNREADABLE, AttemptOutcome.UNREAD)]
    async with worker.store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.UNREAD, NOW)  # as its ending does
    worker.clock.advance(86_400)
    for one in (worker, far):
        with fails(ErrorCode.REPLY_UNREADABLE, "until its definition can read it"):
            await one.begin(kind, token_valid=token_valid)
    assert worker.files() == [".set-aside"]
    assert (await far.begin(kind, rules=NO_ROTATION)).row.sends == 2


async def test_a_later_use_without_a_reply_does_not_release_unreadable_tokens(worker: Worker):
    """Inside its grace the provider takes the token again; after it a further use would end those tokens."""
    rules = RefreshRules(rotation=Rotation.GRACE, grace_s=60)
    use = await worker.begin(rules=rules)
    recorded = RecordedOutcome(worker.journal, judges=unread)
    await worker.spend(use, recorded)
    async with worker.store.write() as tx:
        await tx.attempts.close(use.row, AttemptOutcome.UNREAD, NOW)  # as its ending does
    again = await worker.begin(rules=rules)
    assert again.row.sends == 2
    await worker.spend(again, recorded, SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=True))
    worker.clock.advance(86_400)
    with fails(ErrorCode.REPLY_UNREADABLE, "until its definition can read it"):
        await worker.begin(rules=rules)


async def test_an_entry_that_is_set_aside_is_concluded_once_it_can_be_read(
    worker: Worker, caplog: pytest.LogCaptureFixture
):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal, judges=unread)
    await worker.spend(use, recorded)
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "a lifetime that is a string" in said.getMessage()
    assert {ErrorCode.REPLY_UNREADABLE, use.row.id} <= set(map(str, said.__dict__.values()))
    (path,) = worker.journal.folder.glob("*/*.set-aside")
    kept = SingleUseAttempt(use.row, use.keys, entry=JournalEntry.read(path))
    again = RecordedOutcome(worker.journal, judges=unread)
    with fails(ErrorCode.REPLY_UNREADABLE):
        await worker.single_use.conclude(kept, journaled(kept), again)
    assert (again.failed, worker.files()) == ([], [".set-aside"])
    repaired = RecordedOutcome(worker.journal)
    assert await worker.single_use.conclude(kept, journaled(kept), repaired) == "at-2"
    assert worker.files() == []


async def test_journal_writes_do_not_wait_for_the_resolvers_threads(worker: Worker):
    """The event loop's threads are also the resolver's, and a name that hangs keeps one for long."""
    use, recorded, hangs = await worker.begin(), RecordedOutcome(worker.journal), threading.Event()
    loop = asyncio.get_running_loop()
    stuck = [loop.run_in_executor(None, hangs.wait) for _ in range(64)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert await worker.spend(use, recorded) == "at-2"
    finally:
        hangs.set()
        await asyncio.gather(*stuck)


@pytest.mark.parametrize(
    ("status", "judge", "most", "spends", "left", "outcome"),
    [
        (200, refusing(ErrorCode.REPLY_UNREADABLE), 1, True, [".set-aside"], None),
        (299, refusing(ErrorCode.REPLY_UNREADABLE), 1, True, [".set-aside"], None),
        (200, refusing(ErrorCode.REPLY_UNREADABLE), 0, True, [], None),
        (300, refusing(ErrorCode.REPLY_UNREADABLE), 1, True, [], None),
        (199, refusing(ErrorCode.REPLY_UNREADABLE), 1, True, [], None),
        (500, refusing(ErrorCode.REPLY_UNREADABLE), 1, True, [], None),
        (200, refusing(ErrorCode.GRANT_REJECTED), 1, True, [], AttemptOutcome.REFUSED),
        (200, unread, 1, True, [".set-aside"], AttemptOutcome.UNREAD),
        (200, unread, 0, True, [], None),
        (200, unread, 1, False, [], None),
    ],
)
async def test_only_an_unreadable_success_that_spent_its_credential_is_set_aside(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    judge: Judge,
    most: int,
    spends: bool,
    left: list[str],
    outcome: AttemptOutcome | None,
):
    monkeypatch.setattr(protocol, "_MAX_SET_ASIDE", most)
    use, recorded = (await worker.begin(), RecordedOutcome(worker.journal, judges=judge, spends=spends))
    await worker.spend(use, recorded, RawReply(status, {}, b"<p>"))
    assert worker.files() == left
    assert [settled for _, settled in recorded.failed] == [outcome]


async def test_a_disk_that_breaks_after_the_intent_stops_no_commit(
    worker: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)

    def broken(key: object, answer: bytes) -> JournalEntry:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(reservation_of(use), "write_entry", broken)
    assert await worker.spend(use, recorded) == "at-2"
    assert worker.files() == []
    (committed,) = recorded.committed
    assert committed.entry is None
    (said,) = [it for it in caplog.records if it.name == "evergrant.protocol"]
    assert "Input/output error" in said.getMessage()
    assert said.levelno == logging.ERROR
    assert use.row.id in str(said.__dict__)


async def test_cancelling_the_activity_does_not_cancel_send_and_commit(worker: Worker):
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await let_go.wait()

    use, recorded = await worker.begin(), RecordedOutcome(worker.journal, commits=slow)
    activity = asyncio.create_task(worker.spend(use, recorded))
    await asked.wait()
    activity.cancel()
    with pytest.raises(asyncio.CancelledError):
        await activity
    assert worker.tracker.status_of(use.row).in_flight, "the process owns it"
    let_go.set()
    await worker.sections.drain()
    assert len(recorded.committed) == 1
    assert worker.files() == []


async def test_an_attempt_that_is_past_send_by_does_not_send(worker: Worker):
    late = worker.beside(TimeLimits(send=timedelta(0), poll_interval=timedelta(seconds=7)))
    use, recorded = await late.begin(), RecordedOutcome(late.journal)
    left: list[bool] = []

    async def answer(before_send: BeforeSend) -> RawReply:
        written = before_send()
        assert written is not None
        left.append(True)
        written()
        return YES

    said = await late.answered(use, recorded, answer)
    assert said == ErrorCode.REFRESH_PENDING
    assert left == []
    assert recorded.failed == [(ErrorCode.REFRESH_PENDING, AttemptOutcome.NOT_SENT)]
    assert [failure.retry_after for _, failure in recorded.failures] == [7]


async def test_a_use_that_continues_after_a_takeover_is_recorded(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    machine = seconds_since_boot()
    monkeypatch.setattr(single_use_attempt, "seconds_since_boot", lambda: machine)
    use, recorded = await worker.begin(), RecordedOutcome(worker.journal)

    async def answer(before_send: BeforeSend) -> RawReply:
        nonlocal machine
        written = before_send()
        assert written is not None
        written()
        machine += 60
        async with worker.store.write() as tx:
            await tx.attempts.close(use.row, AttemptOutcome.SUPERSEDED, NOW)
        return YES

    await worker.answered(use, recorded, answer)
    async with worker.store.read() as tx:
        (said,) = await audit.page(tx, worker.connection.tenant, object=worker.connection.id, limit=9)
    assert (said.action, said.context, said.detail["attempt"]) == (
        AuditAction.SENT_TWICE,
        a_request(use).context,
        use.row.id,
    )


async def for_ever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def test_a_section_that_waits_for_the_store_is_cancelled_at_the_limit(caplog: pytest.LogCaptureFixture):
    sections, ended = CriticalSections(), list[str]()
    waits = asyncio.create_task(sections.run(AttemptId("att_1"), asyncio.create_task(for_ever(ended, "one"))))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await sections.drain(timedelta(seconds=0.05))
    assert ended == ["one"]
    (said,) = caplog.records
    assert "shutdown; the next sweep replays it" in said.getMessage()
    assert "att_1" in set(map(str, said.__dict__.values()))
    assert not sections.in_flight(AttemptId("att_1"))
    with pytest.raises(asyncio.CancelledError):
        await waits
