"""What the judge of a case says of evidence that was made up: who sent too early, and what is honest."""

from dataclasses import replace
from typing import Any, cast

import pytest

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.single_use.attempt import AttemptOutcome
from tests.fakes.rows import a_connection, an_integration
from tests.faults.harness.database import TENANT, AttemptRecord, FinalState
from tests.faults.harness.instrumentation.passages import AFTER, BEFORE, Fault
from tests.faults.harness.provider import StrictProvider, Use
from tests.faults.harness.table.case_run import Case, CaseRecord, Layout
from tests.faults.harness.table.cases import WRITING
from tests.faults.harness.table.judge import Verdict, judge
from tests.faults.harness.table.scenarios import SCENARIOS, SENDING
from tests.faults.harness.workers.limits import ANSWER_S, REPLAY_S, SEND_S

TOKEN = ("refresh", "", 1)
DEADLINE = 10.0 + SEND_S + ANSWER_S  # of what the first worker opened at 10
STOPPED = Fault(point=SENDING, side=AFTER, kind="stop")
IN_THE_WINDOW = Fault(point=WRITING, side=AFTER, kind="stop")


def _opened(
    worker: str, at: float, outcome: AttemptOutcome, *, written: float | None = None
) -> AttemptRecord:
    decided = at + 0.01 if written is None else written
    return AttemptRecord(f"jrn_{worker}", TOKEN, at, decided, at + SEND_S, outcome)


def _use(worker: str, at: float, *, good: bool, lasts: float = 0.0) -> Use:
    return Use("rt-1", worker, at, acted=at, over=at + lasts, good=good)


def _told(
    layout: Layout,
    second: AttemptRecord,
    *,
    came: float | None = None,
    first: AttemptRecord | None = None,
    kept_at: float | None = None,
    lasts: float = 0.0,
    fault: Fault = STOPPED,
    rotation: Rotation = Rotation.STRICT,
) -> CaseRecord:
    """A refresh whose first use, by `a` at 10, gave something; `b` sent again and was refused."""
    idp = StrictProvider(rotation, 1)
    again = second.written + 0.01 if came is None else came
    idp.uses = [_use("a", 10.02, good=True, lasts=lasts), _use("b", again, good=False)]
    return CaseRecord(
        Case(SCENARIOS[0], fault, layout, rotation),
        reached=True,
        kept=False,
        heard=False,
        end=FinalState(_given_up(), None, None, None, ()),
        idp=idp,
        passed=[],
        attempts=(first or _opened("a", 10.0, AttemptOutcome.SUPERSEDED), second),
        journals={"a": "jrn_a", "b": "jrn_b"},
        entries=set() if kept_at is None else {("a", kept_at)},
    )


def _given_up() -> Connection:
    now = SystemClock().now()
    return (
        a_connection(an_integration(TENANT, now), now).granted(now).rejected(ErrorCode.OUTCOME_UNKNOWN, now)
    )


def _refused(at: float, **more: Any) -> AttemptRecord:
    return _opened("b", at, AttemptOutcome.REFUSED, **more)


def test_another_host_that_takes_over_while_an_answer_could_come_is_a_violation():
    judged = judge(_told(Layout.HOSTS, _refused(10.2)))
    assert judged.verdict is Verdict.VIOLATION
    assert judged.why == ["host-b took over from host-a 1.49 s too early"]


def test_a_takeover_too_early_is_a_violation_for_codes_and_in_the_double_send_window():
    assert judge(_told(Layout.HOSTS, _refused(10.2), fault=IN_THE_WINDOW)).verdict is Verdict.VIOLATION
    code = {"spends": ("code_exchange", "cns_1", 1)}
    told = _told(
        Layout.HOSTS,
        replace(_refused(10.2), **cast(Any, code)),
        first=replace(_opened("a", 10.0, AttemptOutcome.INSTALLED_LATE), **cast(Any, code)),
        rotation=Rotation.NONE,
    )
    assert "too early" in str(judge(told))


@pytest.mark.parametrize(
    "told",
    [
        _told(Layout.HOSTS, _refused(DEADLINE + 0.01)),
        # begun before, and decided after it
        _told(Layout.HOSTS, _refused(DEADLINE - 0.2, written=DEADLINE + 0.01)),
        # both under way together: the first one was answered after its client had given up
        _told(Layout.HOSTS, _refused(DEADLINE + 0.01), lasts=5.0),
        # or it was stopped in the window, and sent when the other one had
        _told(Layout.HOSTS, _refused(DEADLINE + 0.01), came=10.01, fault=IN_THE_WINDOW),
    ],
)
def test_after_the_deadline_another_host_may_take_over_whatever_the_first_one_does(told: CaseRecord):
    assert judge(told).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "told",
    [
        _told(Layout.TWO, _refused(10.2)),  # it saw that the owner was dead
        _told(Layout.HOSTS, _refused(10.2), first=_opened("a", 10.0, AttemptOutcome.NOT_SENT)),
        _told(Layout.HOSTS, replace(_refused(10.2), journal="jrn_of_nobody")),
    ],
)
def test_a_permitted_immediate_resend_is_no_violation(told: CaseRecord):
    assert judge(told).verdict is Verdict.UNKNOWN


def test_without_rotation_an_immediate_resend_is_no_violation():
    told = _told(Layout.HOSTS, _refused(10.2), rotation=Rotation.NONE)
    assert "too early" not in str(judge(told))


def test_two_uses_under_way_together_on_one_host_are_a_violation():
    judged = judge(_told(Layout.TWO, _refused(10.2), lasts=1.0))
    assert judged.verdict is Verdict.VIOLATION
    assert judged.why == ["1 uses of one credential in flight together on one host"]


@pytest.mark.parametrize("outcome", [AttemptOutcome.SUPERSEDED, AttemptOutcome.INSTALLED])
def test_a_journalled_reply_is_not_asked_for_again(outcome: AttemptOutcome):
    """It was journalled after its fault, so that nothing was kept when that came."""
    first = _opened("a", 10.0, outcome)
    judged = judge(_told(Layout.TWO, _refused(10.2), first=first, kept_at=10.1))
    assert "a's answer lay in a journal of host-a, and was asked for again there" in judged.why
    assert judged.verdict in (Verdict.LOST, Verdict.VIOLATION)


_LATE = 10.0 + SEND_S + REPLAY_S
_OF_A_DISK = Fault(
    point="evergrant_server.journal.reservation:JournalReservation.write_entry#5", side=AFTER, kind="lost"
)


@pytest.mark.parametrize(
    "told",
    [
        # the other one had begun: its answer was in hand, and in no journal
        _told(Layout.TWO, _refused(12.0), kept_at=12.01),
        # no worker could replay it for so long
        _told(Layout.TWO, _refused(_LATE + 0.01), kept_at=10.1),
        # the disk said no
        _told(Layout.TWO, _refused(12.0), kept_at=10.1, fault=_OF_A_DISK),
        # nothing was kept at all
        _told(Layout.TWO, _refused(12.0)),
        _told(Layout.ONE, _refused(12.0), fault=Fault(point=SENDING, side=BEFORE, kind="stop")),
    ],
)
def test_an_answer_that_no_journal_had_in_time_is_an_honest_loss(told: CaseRecord):
    assert judge(told).verdict is Verdict.UNKNOWN


def test_an_answer_in_the_journal_of_a_host_that_is_away_is_an_honest_loss_by_its_own_name():
    judged = judge(_told(Layout.HOSTS, _refused(DEADLINE + 0.5), kept_at=10.1))
    assert (judged.verdict, judged.why) == (Verdict.UNREACHABLE, [])


def test_a_refusal_that_was_kept_is_no_answer_that_was():
    """The same worker's: its first answer died, and the no to its second use is in the journal."""
    told = _told(Layout.ONE, replace(_refused(12.0), journal="jrn_a"))
    told.idp.uses[1].worker = "a"
    told.entries.add(("a", 12.1))
    assert judge(told).verdict is Verdict.UNKNOWN
