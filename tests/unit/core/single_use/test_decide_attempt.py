"""May an attempt be the next of its slot? Each case of `decide_attempt`, and each edge of its times."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import (
    LIMITS,
    MAX_SENDS,
    Attempt,
    AttemptKind,
    AttemptOutcome,
    AttemptStatus,
    ResendDecision,
    answer_may_come,
    decide_attempt,
    decide_resend,
    is_dated_ahead,
    may_invalidate,
    may_send_again,
    outcome_of_error,
    redated,
    with_earlier_sends,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TICK, HOUR = timedelta(microseconds=1), timedelta(hours=1)
STRICT = RefreshRules(rotation=Rotation.STRICT)
GRACE = RefreshRules(rotation=Rotation.GRACE, grace_s=30)
UNKNOWN = RefreshRules(rotation=Rotation.UNKNOWN)
RESEND, WAIT, GIVE_UP = ResendDecision.RESEND, ResendDecision.WAIT, ResendDecision.GIVE_UP

OPEN = Attempt(
    tenant=Tenant("t"), id=AttemptId("att_1"), connection_id=ConnectionId("con_1"), kind=AttemptKind.REFRESH,
    from_generation=1, journal_id="jrn_1", opened_at=NOW, send_by=NOW + LIMITS.send,
)  # fmt: skip
LISTENED = OPEN.send_by + LIMITS.answer  # from here on nobody listens for its answer
KEPT = LISTENED + LIMITS.replay
WANTED = OPEN.model_copy(update={"id": AttemptId("att_2")})
CONSENT = WANTED.model_copy(update={"kind": AttemptKind.CODE_EXCHANGE, "credential": "cns_1"})
SEEN = {"owner_alive", "in_flight", "answered"}
TWICE = OPEN.model_copy(update={"sends": MAX_SENDS})


def decided(
    wanted: Attempt,
    now: datetime,
    opened: Attempt | None = None,
    rules: RefreshRules = STRICT,
    **more: object,
) -> ResendDecision:
    seen = AttemptStatus(**{name: more.pop(name) for name in SEEN & set(more)})
    return decide_attempt(
        wanted, rules, now, opened=opened, seen=seen, **{"unknown": None, "token_valid": False} | more
    )


def test_a_lost_use_may_be_repeated_once_and_never_again():
    assert decided(WANTED, LISTENED, unknown=OPEN) is RESEND
    assert decided(WANTED, LISTENED, unknown=TWICE) is GIVE_UP
    assert decided(WANTED, NOW, rules=GRACE, unknown=TWICE) is RESEND
    assert decided(WANTED, NOW) is RESEND


def test_what_made_tokens_that_wait_to_be_read_is_not_sent_again_where_that_would_end_them():
    unread = OPEN.model_copy(update={"outcome": AttemptOutcome.UNREAD})
    assert decided(WANTED, LISTENED, unread=unread) is ResendDecision.AWAIT_DEFINITION
    for now, verdict in (
        (NOW + timedelta(seconds=30), RESEND),
        (NOW + timedelta(seconds=31), ResendDecision.AWAIT_DEFINITION),
    ):
        assert decided(WANTED, now, rules=GRACE, unread=unread) is verdict


@pytest.mark.parametrize("later", [OPEN.model_copy(update={"sends": 2}), TWICE])
def test_tokens_that_wait_to_be_read_hold_their_credential_after_a_later_use_too(later: Attempt):
    """A resend inside a grace invalidates none of those tokens."""
    unread = OPEN.model_copy(update={"outcome": AttemptOutcome.UNREAD})
    seen = {"unread": unread, "owner_alive": False, "in_flight": False}
    assert decided(WANTED, LISTENED, later, **seen) is ResendDecision.AWAIT_DEFINITION
    assert decided(WANTED, LISTENED, unknown=later, unread=unread) is ResendDecision.AWAIT_DEFINITION
    assert decided(WANTED, LISTENED, later, **seen | {"in_flight": True}) is WAIT
    assert decided(WANTED, NOW, later, GRACE, **seen) is RESEND


@pytest.mark.parametrize(
    ("sees", "now", "verdict"),
    [
        ({"owner_alive": None}, LISTENED - TICK, WAIT),
        ({"owner_alive": None}, LISTENED, RESEND),
        ({"owner_alive": True}, LISTENED - TICK, WAIT),
        ({"owner_alive": False}, NOW, RESEND),
        ({"owner_alive": True, "in_flight": False}, NOW, RESEND),
        ({"owner_alive": False, "in_flight": True}, KEPT, WAIT),
        ({"owner_alive": False, "in_flight": False, "answered": True}, KEPT - TICK, WAIT),
        ({"owner_alive": False, "in_flight": True, "answered": True}, KEPT, RESEND),
    ],
)
def test_another_credential_waits_for_what_may_still_come(
    sees: dict[str, object], now: datetime, verdict: ResendDecision
):
    """A new consent while a refresh is open: two answers at once would write over one another."""
    assert decided(CONSENT, now, OPEN, **sees) is verdict


@pytest.mark.parametrize("differs", [{"kind": AttemptKind.CODE_EXCHANGE}, {"from_generation": 2}])
def test_the_count_of_one_credential_says_nothing_of_another(differs: dict[str, object]):
    other = WANTED.model_copy(update=differs)
    assert decided(other, LISTENED, TWICE) is RESEND
    assert decided(WANTED, LISTENED, TWICE) is GIVE_UP


def test_an_answer_on_disk_is_never_asked_for_again():
    for now in (NOW, KEPT + timedelta(days=1)):
        assert decided(WANTED, now, OPEN, owner_alive=False, in_flight=False, answered=True) is WAIT


def test_a_worker_sends_soon_and_listens_for_longer_than_that():
    assert timedelta(0) < LIMITS.poll_interval < LIMITS.send < LIMITS.answer < LIMITS.replay
    assert LIMITS.answer == timedelta(seconds=45), "docs/protocol.md names it"
    assert LIMITS.replay == timedelta(minutes=10), "and this one"


def test_the_limits_are_those_that_were_given():
    quick = LIMITS.model_copy(update={"answer": timedelta(seconds=1), "replay": timedelta(seconds=1)})
    later = OPEN.send_by + timedelta(seconds=1)
    for wanted in (WANTED, CONSENT):
        assert decided(wanted, later, OPEN) is WAIT
        assert decided(wanted, later, OPEN, limits=quick) is RESEND
    assert decided(CONSENT, later + timedelta(seconds=1), OPEN, answered=True, limits=quick) is RESEND


@pytest.mark.parametrize(
    ("rules", "seconds", "token_valid", "owner_alive", "in_flight", "verdict"),
    [
        (RefreshRules(rotation=Rotation.NONE), 1, True, None, None, RESEND),
        (GRACE, 29, True, False, False, RESEND),
        (GRACE, 29, True, True, True, WAIT),
        (GRACE, 31, True, True, False, WAIT),
        (STRICT, 1, True, True, False, WAIT),
        (STRICT, 1, False, True, False, RESEND),
        (STRICT, 1, False, True, True, WAIT),
        (STRICT, 1, True, False, False, RESEND),
        (UNKNOWN, 1, False, None, None, WAIT),
        (UNKNOWN, 61, False, None, None, RESEND),
        (UNKNOWN, 61, True, None, None, WAIT),
        (STRICT, 1, False, True, None, WAIT),
        (STRICT, 61, False, True, None, RESEND),
    ],
)
def test_takeover(rules, seconds, token_valid, owner_alive, in_flight, verdict):
    now, seen = NOW + timedelta(seconds=seconds), AttemptStatus(owner_alive, in_flight)
    assert decide_resend(OPEN, rules, now, seen, token_valid=token_valid) is verdict


def test_a_grace_is_over_the_moment_after_its_last():
    alive = AttemptStatus(True, False)
    end = NOW + timedelta(seconds=30)
    assert decide_resend(OPEN, GRACE, end, alive, token_valid=True) is RESEND
    assert decide_resend(OPEN, GRACE, end + TICK, alive, token_valid=True) is WAIT
    again = OPEN.model_copy(update={"first_sent_at": NOW, "opened_at": end, "sends": MAX_SENDS})
    assert may_send_again(GRACE, again, end)
    assert not may_send_again(GRACE, again, end + TICK), "it counts from the first use, not from the last"


@pytest.mark.parametrize(("in_flight", "may"), [(True, True), (False, False)])
def test_what_is_seen_on_this_host_is_believed(in_flight: bool, may: bool):
    for now in (NOW, KEPT):
        assert answer_may_come(OPEN, now, AttemptStatus(True, in_flight)) is may


def test_uses_are_counted_from_the_first():
    assert with_earlier_sends(WANTED, None) is WANTED
    second = with_earlier_sends(WANTED.model_copy(update={"opened_at": LISTENED}), OPEN)
    assert (second.sends, second.first_sent_at, second.first_opened_at) == (2, NOW, NOW)
    third = with_earlier_sends(WANTED, second)
    assert (third.sends, third.first_opened_at) == (3, NOW)


REFUSED, NOT_SENT = AttemptOutcome.REFUSED, AttemptOutcome.NOT_SENT


@pytest.mark.parametrize(
    ("outcome", "statuses", "code"),
    [
        (REFUSED, (400, 401), None),
        (NOT_SENT, (429, 503), None),
        (None, (200, 500, 502, 504), None),
        (REFUSED, (200, 299), ErrorCode.PROVIDER_ERROR),  # it reports an error: it did not act
        (None, (199, 300, 399, 500), ErrorCode.PROVIDER_ERROR),
        (REFUSED, (200,), ErrorCode.GRANT_REJECTED),
        (NOT_SENT, (200, 500), ErrorCode.PROVIDER_RATE_LIMITED),
        (None, (200, 302), ErrorCode.REPLY_UNREADABLE),
        (REFUSED, (499,), ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_what_an_error_says_about_the_credential(outcome: AttemptOutcome | None, statuses, code):
    for status in statuses:
        assert (outcome_of_error(status, code) if code else outcome_of_error(status)) is outcome, status


def test_a_use_that_is_dated_ahead_of_our_clock():
    """Some clock was wrong: its deadlines count from when we saw it, and no grace is known to go on."""
    ahead = OPEN.model_copy(update={"opened_at": NOW + HOUR, "send_by": NOW + HOUR + LIMITS.send})
    assert not is_dated_ahead(OPEN, NOW - CLOCK_SKEW)
    assert is_dated_ahead(OPEN, NOW - CLOCK_SKEW - TICK)
    seen = redated(ahead, NOW)
    assert (seen.opened_at, seen.send_by, seen.first_opened_at) == (NOW, OPEN.send_by, ahead.opened_at)
    assert decided(WANTED, LISTENED - TICK, seen) is WAIT
    assert decided(WANTED, LISTENED, seen) is RESEND
    twice = seen.model_copy(update={"sends": MAX_SENDS})
    assert not may_send_again(GRACE, twice, NOW)
    assert may_send_again(GRACE, twice, NOW + HOUR - CLOCK_SKEW)
    assert may_send_again(RefreshRules(rotation=Rotation.NONE), twice, NOW)


def test_tokens_live_from_the_first_use_unless_that_leaves_next_to_nothing():
    again = OPEN.model_copy(update={"opened_at": NOW + HOUR * 3 / 4, "first_sent_at": NOW})
    assert again.tokens_valid_from(3600) == NOW
    assert again.tokens_valid_from(None) == NOW
    assert again.tokens_valid_from(3599.9) == again.opened_at
    ahead = OPEN.model_copy(update={"first_sent_at": NOW + HOUR})
    assert ahead.tokens_valid_from(3600) == NOW, "no first use comes after a later one: a clock was set back"


def test_a_second_use_may_end_what_the_first_one_brought_unless_the_provider_takes_it():
    assert may_invalidate(WANTED, OPEN, STRICT, NOW)
    assert not may_invalidate(OPEN, OPEN, STRICT, NOW), "it is the use that was answered"
    assert not may_invalidate(CONSENT, OPEN, STRICT, NOW), "it is of another credential"
    graced = GRACE.grace_s * timedelta(seconds=1)
    assert not may_invalidate(WANTED, OPEN, RefreshRules(rotation=Rotation.NONE), NOW)
    assert not may_invalidate(WANTED, OPEN, GRACE, NOW + graced)
    assert may_invalidate(WANTED, OPEN, GRACE, NOW + graced + TICK)
