"""The instant before a credential leaves, and what is recorded when it may have left twice."""

from datetime import timedelta

import pytest

from activities.single_use import attempt as single_use_attempt
from activities.single_use.attempt import SendFence, SingleUseAttempt
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import AttemptOutcome, TimeLimits
from evergrant_server.journal.reservation import RESERVATION_SUFFIX, remove_reservation
from evergrant_server.telemetry import metrics
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.unit.activities.single_use.protocol_worker import Worker, a_request, reservation_of

LIMITS = TimeLimits(send=timedelta(0), poll_interval=timedelta(seconds=7))
LAST = 1000.0  # the last moment, by the machine's own count


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """What counts the time that is left, and the clock that writes the hour, are two."""
    counts = SetClock(NOW)
    monkeypatch.setattr(
        single_use_attempt, "seconds_since_boot", lambda: LAST + (counts.now() - NOW).total_seconds()
    )
    return counts


async def about_to_send(worker: Worker) -> tuple[SingleUseAttempt, SendFence]:
    use = await worker.begin()
    return use, SendFence(reservation_of(use), worker.clock, LAST, LIMITS)


def fenced(worker: Worker, use: SingleUseAttempt) -> bool:
    return remove_reservation(worker.journal.folder / worker.journal.id / f"{use.row.id}{RESERVATION_SUFFIX}")


async def test_until_send_by_the_bytes_leave_under_the_lock(
    worker: Worker, machine: SetClock, monkeypatch: pytest.MonkeyPatch
):
    windows: list[float] = []
    monkeypatch.setattr(metrics, "record_send_window", windows.append)
    use, leaves = await about_to_send(worker)
    assert (leaves.checked_at, leaves.written_at) == (None, None)
    written = leaves.check()
    assert (leaves.checked_at, leaves.written_at) == (NOW, None)
    assert not fenced(worker, use)
    worker.clock.advance(3)
    machine.advance(2)
    written()
    assert leaves.written_at == NOW + timedelta(seconds=3)
    assert windows == [2.0]
    assert fenced(worker, use)


async def test_after_send_by_nothing_is_sent_and_a_takeover_is_possible(worker: Worker, machine: SetClock):
    use, leaves = await about_to_send(worker)
    machine.advance(0.001)
    with fails(ErrorCode.REFRESH_PENDING, "too late to send") as caught:
        leaves.check()
    assert caught.value.retry_after == 7
    assert leaves.checked_at is None
    assert fenced(worker, use)


async def test_a_fenced_attempt_is_not_sent(worker: Worker, machine: SetClock):
    use, leaves = await about_to_send(worker)
    assert fenced(worker, use)
    with fails(ErrorCode.REFRESH_PENDING, "another worker of this host took over") as caught:
        leaves.check()
    assert caught.value.retry_after == 7


async def recorded(worker: Worker) -> list[AuditRecord]:
    async with worker.store.read() as tx:
        found = await audit.page(tx, worker.connection.tenant, object=worker.connection.id, limit=100)
    return [it for it in found if it.action is AuditAction.SENT_TWICE]


@pytest.mark.parametrize(
    ("written_after", "overlapped", "outcome"),
    [
        (-1, False, "one after the other"),
        (0, False, "one after the other"),
        (1, True, "overlapped"),
        (None, True, "overlapped"),  # whether it was written isn't known: until now, then
    ],
)
@pytest.mark.parametrize("installed", [False, True])
async def test_a_use_after_a_takeover_is_recorded_and_counted(
    worker: Worker,
    machine: SetClock,
    counted: list[str],
    written_after: float | None,
    overlapped: bool,
    outcome: str,
    installed: bool,
):
    use, leaves = await about_to_send(worker)
    written = leaves.check()
    taken_over_at = NOW + timedelta(seconds=10)
    async with worker.store.write() as tx:
        taken_over = await tx.attempts.close(use.row, AttemptOutcome.SUPERSEDED, taken_over_at)
        if installed:
            await tx.attempts.mark_installed_late(taken_over)
    worker.clock.advance(10 + (written_after or 0))
    written_at = worker.clock.now()
    if written_after is not None:
        written()
    worker.clock.advance(5)
    machine.advance(60)
    await leaves.record_double_send(worker.store, use.row, a_request(use))
    (said,) = await recorded(worker)
    assert said.at == worker.clock.now()
    assert said.detail == {
        "attempt": use.row.id,
        "from_generation": 1,
        "checked_at": NOW.isoformat(),
        "written_at": (worker.clock.now() if written_after is None else written_at).isoformat(),
        "taken_over_at": taken_over_at.isoformat(),
        "overlapped": overlapped,
    }
    assert counted == [outcome]


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("outcome", [AttemptOutcome.SUPERSEDED, AttemptOutcome.INSTALLED, None])
async def test_a_use_without_a_takeover_was_sent_once(
    worker: Worker,
    machine: SetClock,
    counted: list[str],
    late: bool,
    checked: bool,
    outcome: AttemptOutcome | None,
):
    use, leaves = await about_to_send(worker)
    if checked:
        leaves.check()()
    if outcome is not None:
        async with worker.store.write() as tx:
            await tx.attempts.close(use.row, outcome, NOW)
    machine.advance(60 if late else 0)
    await leaves.record_double_send(worker.store, use.row, a_request(use))
    twice = late and checked and outcome is AttemptOutcome.SUPERSEDED
    assert len(await recorded(worker)) == len(counted) == twice


async def test_an_unavailable_store_does_not_fail_the_attempt(
    worker: Worker, machine: SetClock, counted: list[str], monkeypatch: pytest.MonkeyPatch
):
    use, leaves = await about_to_send(worker)
    leaves.check()()
    machine.advance(60)

    def away() -> None:
        raise Failure(ErrorCode.STORE_UNAVAILABLE)

    monkeypatch.setattr(worker.store, "read", away)
    await leaves.record_double_send(worker.store, use.row, a_request(use))
    assert counted == []
