"""The newest rules, simulated: how many calls a day of trouble costs, and when grants are looked at."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.grants import awaits_evidence, grant_ends_at, token_has_ended
from evergrant_server.core.lifecycle.schedule import RULES
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.lifecycle.transition import next_step
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import (
    ConnectionState,
    EventKind,
    LifecycleEvent,
    RefreshReason,
)
from tests.unit.core.lifecycle.steps import (
    ACTIVE,
    CONTEXT,
    DAY,
    HOUR,
    MINUTE,
    NEWEST,
    NOW,
    failed,
    granted,
    step,
)

SECOND = timedelta(seconds=1)
Answer = Callable[[datetime], GrantResult]


def simulated(
    life: ConnectionState,
    answer: Answer,
    until: datetime,
    *,
    asks_every: timedelta | None = None,
    share: float = 0.5,
) -> tuple[ConnectionState, list[datetime], list[int]]:
    """Live until `until`: the moments of every try, and the days that were announced."""
    now, tries, said = NOW, [], []
    asked = NOW
    while True:
        woken = next_timer(life, NEWEST, share)
        by_itself = max(woken.at, now) if woken else until
        now = min(by_itself, asked) if asks_every else by_itself
        if now >= until:
            return life, tries, said
        if asks_every and now == asked:
            asked += asks_every
            done = step(life, EventKind.REFRESH_REQUESTED, now, share, seen_generation=life.generation)
        else:
            done = step(life, EventKind.TIMER_FIRED, now, share)
        life = done.state
        if done.command is Command.ANNOUNCE_EXPIRY:
            said.append(done.days_before_end)
        elif awaits_evidence(life, now) and done.command is Command.REFRESH:  # and there is none
            life = step(life, EventKind.REFRESH_ENDED, now, share, result=GrantResult(undecided=True)).state
        elif done.command is not Command.NOTHING:
            tries.append(now)
            life = step(life, EventKind.REFRESH_ENDED, now, share, result=answer(now)).state


def failing(code: ErrorCode, **more: object) -> Answer:
    return lambda now: failed(code, **more)


def hourly(**more: object) -> Answer:
    count = iter(range(4, 1_000_000))

    def answer(now: datetime) -> GrantResult:
        return granted(next(count), now, **more)

    return answer


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_outage_of_twelve_hours_costs_a_handful_of_calls(share: float):
    warm = ACTIVE.model_copy(update={"policy": "warm"})
    _, tries, _ = simulated(warm, failing(ErrorCode.PROVIDER_UNREACHABLE), NOW + 12 * HOUR, share=share)
    assert 8 <= len(tries) <= 16


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_client_that_is_refused_and_an_unknown_error_cost_a_dozen_calls_a_day(share: float):
    """Thousands of requests a day, of which almost none may reach the provider."""
    unknown = failing(ErrorCode.PROVIDER_ERROR, unknown_error=True)
    refused = failing(ErrorCode.CLIENT_REJECTED)
    for dead, asks_every in ((unknown, 14.4 * SECOND), (refused, 10 * SECOND)):
        _, tries, _ = simulated(ACTIVE, dead, NOW + DAY, asks_every=asks_every, share=share)
        assert 1 < len(tries) < 15


LOST = failed(ErrorCode.PROVIDER_UNREACHABLE, answer_lost=True)
DOWN, REFUSED = failed(ErrorCode.PROVIDER_ERROR), failed(ErrorCode.PROVIDER_ERROR, unknown_error=True)
REPAIR = failed(ErrorCode.CLIENT_REJECTED, unknown_error=True)
AN_HOUR_OF = 12  # failures in a row


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(
    ("before", "then", "waits"),
    [
        (before, then, waits)
        for then, waits in ((REFUSED, MINUTE), (LOST, 3 * SECOND), (REPAIR, NEWEST.repair_interval))
        for before in (DOWN, LOST, REPAIR)
        if before is not then
    ],
)
def test_a_new_cause_begins_its_waits_anew(
    before: GrantResult, then: GrantResult, waits: timedelta, share: float
):
    """Whatever the number of failures before it."""
    life = ACTIVE
    for _ in range(AN_HOUR_OF):
        life = step(life, EventKind.REFRESH_ENDED, share=share, result=before).state
    life = step(life, EventKind.REFRESH_ENDED, share=share, result=then).state
    assert life.retry_at is not None
    assert life.retry_at - NOW <= waits
    assert life.failures == AN_HOUR_OF + 1


def test_a_refusal_is_asked_again_twice_within_two_minutes_and_then_less_and_less():
    life, waits = ACTIVE, []
    for _ in range(6):
        life = step(life, EventKind.REFRESH_ENDED, share=0.99, result=REFUSED).state
        assert life.retry_at is not None
        waits.append(life.retry_at - NOW)
    assert waits[0] == waits[1]
    assert waits[0] + waits[1] <= timedelta(minutes=2)
    assert waits[2:] == sorted(waits[2:])
    assert waits[-1] <= 5 * HOUR


def test_after_a_refusal_a_caller_causes_a_look_for_evidence_once_a_minute():
    life = ACTIVE
    for _ in range(3):
        life = step(life, EventKind.REFRESH_ENDED, result=REFUSED).state
    soon = NOW + MINUTE
    assert (life.caller_retry_at, awaits_evidence(life, soon)) == (soon, True)
    assert step(life, EventKind.REFRESH_REQUESTED, NOW, seen_generation=3).command is Command.NOTHING
    asked = step(life, EventKind.REFRESH_REQUESTED, soon, seen_generation=3)
    assert asked.command is Command.REFRESH
    looked = step(asked.state, EventKind.REFRESH_ENDED, soon, result=GrantResult(undecided=True)).state
    assert (looked.retry_at, looked.tries, looked.refusal) == (life.retry_at, 3, ErrorCode.PROVIDER_ERROR)
    assert looked.caller_retry_at == soon + MINUTE
    assert life.retry_at is not None
    assert not awaits_evidence(life, life.retry_at), "it is due"
    repaired = step(life, EventKind.PROVIDER_CHANGED, soon).state
    assert not awaits_evidence(repaired, soon), "an admin has changed something"


def test_a_grant_that_is_probably_over_is_tried_once_more_a_day_later():
    probably = failed(ErrorCode.GRANT_PROBABLY_OVER, attempt_id=AttemptId("att_1"), last_try=True)
    life = step(ACTIVE, EventKind.REFRESH_ENDED, result=probably).state
    assert (life.state, life.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_PROBABLY_OVER)
    timer = next_timer(life, NEWEST)
    assert timer is not None
    assert (timer.at, timer.summary) == (NOW + DAY, "try the grant once more that is probably over")
    tried = step(life, EventKind.TIMER_FIRED, timer.at)
    assert tried.command is Command.VERIFY_LATE_TOKENS
    dead = step(tried.state, EventKind.LATE_VERIFICATION_ENDED, timer.at, result=probably).state
    assert (dead.state, next_timer(dead, NEWEST)) == (LifecycleState.NEEDS_REAUTH, None)
    well = step(tried.state, EventKind.LATE_VERIFICATION_ENDED, timer.at, result=granted(4, timer.at)).state
    assert (well.state, well.reason, well.late_attempt) == (LifecycleState.ACTIVE, None, None)
    again = step(life, EventKind.CODE_EXCHANGE_ENDED, result=granted(4)).state
    assert (again.state, again.late_attempt) == (LifecycleState.ACTIVE, None), "a consent ends the wait"


def test_an_outage_goes_on_counting_through_an_answer_that_says_nothing():
    """A provider that answers now and then isn't asked as if it had just begun to fail."""
    life = ACTIVE
    for news in (*[DOWN] * AN_HOUR_OF, REFUSED, DOWN):
        life = step(life, EventKind.REFRESH_ENDED, result=news).state
    assert (life.tries, life.outages) == (AN_HOUR_OF + 1, AN_HOUR_OF + 1)
    well = step(life, EventKind.REFRESH_ENDED, result=granted(4)).state
    assert (well.failures, well.cause, well.tries, well.outages) == (0, None, 0, 0)


def test_earlier_rules_count_all_failures_in_a_row():
    life = ACTIVE
    for news in (*[DOWN] * AN_HOUR_OF, REFUSED):
        event = LifecycleEvent(kind=EventKind.REFRESH_ENDED, context=CONTEXT, result=news)
        life = next_step(life, event, NOW, RULES[3]).state
    assert life.retry_at is not None
    assert life.retry_at - NOW > HOUR


def test_a_repaired_client_is_tried_by_all_but_not_at_once():
    life = step(ACTIVE, EventKind.REFRESH_ENDED, result=failed(ErrorCode.CLIENT_REJECTED)).state
    moments = {step(life, EventKind.PROVIDER_CHANGED, share=n / 10).state.retry_at for n in range(10)}
    assert len(moments) == 10
    assert max(moments) <= NOW + timedelta(minutes=1)
    changed = step(life, EventKind.PROVIDER_CHANGED, share=0.9).state
    asked = step(changed, EventKind.REFRESH_REQUESTED, seen_generation=3)
    assert asked.command is Command.REFRESH, "who asks needn't wait"


# --- the refresh token's own end ----------------------------------------------------------


@pytest.mark.parametrize("policy", ["warm", "adaptive", "on_demand"])
def test_an_end_that_no_refresh_moves_is_announced_once_each_and_only_kept_alive_once(policy: str):
    life = ACTIVE.model_copy(
        update={"policy": policy, "refresh_expires_at": NOW + 90 * DAY, "end_known_at": NOW, "leased": False}
    )
    _, tries, said = simulated(life, hourly(refresh_expires_at=NOW + 90 * DAY), NOW + 89.9 * DAY)
    assert said == [14, 3, 1]
    if policy == "on_demand":
        assert len(tries) == 1


def test_an_hour_more_or_less_is_the_same_end_and_a_new_one_is_announced_anew():
    end = NOW + 20 * DAY
    known = {"refresh_expires_at": end, "refresh_extends": False, "end_known_at": NOW}
    hard = ACTIVE.model_copy(update={**known, "announced_days": (14,)})
    for drift, announced in ((timedelta(minutes=5), (14,)), (30 * DAY, ())):
        at = NOW + HOUR
        news = hourly(refresh_expires_at=end + drift)(at)
        move = EventKind.REFRESH_ENDED if announced else EventKind.CODE_EXCHANGE_ENDED
        assert step(hard, move, at, result=news).state.announced_days == announced


@pytest.mark.parametrize(("days", "said"), [(0.5, []), (2, [1]), (5, [3, 1]), (14, [3, 1]), (60, [14, 3, 1])])
def test_no_announcement_is_for_more_days_than_the_grant_ever_had(days: float, said: list[int]):
    """A grant without a refresh token: sixty days and no way to go on, as LinkedIn's members know it."""
    end = NOW + timedelta(days=days)
    life = ACTIVE.model_copy(update={"refreshable": False, "expires_at": end, "end_known_at": NOW})
    assert simulated(life, failing(ErrorCode.CONSENT_REQUIRED), end)[2] == said


def test_announcements_that_were_slept_through_are_not_made_up_for():
    life = ACTIVE.model_copy(update={"refreshable": False, "expires_at": NOW + 60 * DAY, "end_known_at": NOW})
    late = step(life, EventKind.TIMER_FIRED, NOW + 58 * DAY)
    assert late.command is Command.ANNOUNCE_EXPIRY
    assert (late.days_before_end, late.state.announced_days) == (3, (14, 3))


def test_an_end_comes_near_when_what_would_extend_it_fails():
    life = ACTIVE.model_copy(
        update={"refresh_expires_at": NOW + 30 * DAY, "refresh_extends": True, "end_known_at": NOW}
    )
    assert grant_ends_at(life) is None
    down = failing(ErrorCode.PROVIDER_UNREACHABLE)
    assert simulated(life, down, NOW + 30 * DAY)[2] == [14, 3, 1]


def test_a_token_that_is_too_young_is_not_refreshed():
    """Meta: at least 24 hours old."""
    life = ACTIVE.model_copy(update={"expires_at": NOW + 60 * DAY, "min_age_s": 86_400.0})
    young = step(life, EventKind.ROTATION_REQUESTED, NOW + HOUR)
    assert (young.command, young.state.declined_s) == (Command.NOTHING, 23 * 3600.0)
    assert step(life, EventKind.ROTATION_REQUESTED, NOW + DAY).command is Command.REFRESH


# --- reports of a refused token -----------------------------------------------------------


REPORT = {"refresh_reason": RefreshReason.UNAUTHORIZED}


def test_a_report_refreshes_once_and_a_provider_that_always_says_401_causes_no_storm():
    """Beyond one for each token that is over, which a report only hastens."""
    life, forced, over, now = ACTIVE, [], [], NOW
    answer = hourly()
    while now < NOW + DAY:
        done = step(life, EventKind.REFRESH_REQUESTED, now, seen_generation=life.generation, **REPORT)
        life = done.state
        if done.command is Command.REFRESH:
            (over if token_has_ended(life, now) else forced).append(now)
            life = step(life, EventKind.REFRESH_ENDED, now, result=answer(now)).state
        else:
            assert life.declined_s
        now += timedelta(seconds=10)
    assert len(forced) <= 10, "8,640 reports, each of the newest generation"
    assert len(over) <= 24
    assert forced[1] - forced[0] == NEWEST.forced_interval


def test_a_report_of_an_older_generation_is_answered_and_one_after_a_day_forces_again():
    life = ACTIVE.model_copy(
        update={"forced_refreshes": 5, "last_forced_at": NOW, "expires_at": NOW + 2 * DAY}
    )
    old = step(life, EventKind.REFRESH_REQUESTED, seen_generation=2, **REPORT)
    assert (old.command, old.state.declined_s) == (Command.NOTHING, None)
    later = step(life, EventKind.REFRESH_REQUESTED, NOW + DAY, seen_generation=3, **REPORT)
    assert (later.command, later.state.forced_refreshes) == (Command.REFRESH, 1)


# --- clocks -------------------------------------------------------------------------------


def test_a_report_of_an_expired_token_refreshes_at_once():
    """Forced a moment ago, and expired now by the workflow's clock."""
    life = ACTIVE.model_copy(
        update={"forced_refreshes": 3, "last_forced_at": NOW + HOUR, "installed_at": NOW}
    )
    report = REPORT | {"seen_generation": 3}
    over = step(life, EventKind.REFRESH_REQUESTED, NOW + HOUR, **report)
    assert (over.command, over.state.forced_refreshes) == (Command.REFRESH, 3)
    before = step(life, EventKind.REFRESH_REQUESTED, NOW + HOUR - SECOND, **report)
    assert before.command is Command.NOTHING
    assert before.state.declined_s == 1.0, "and may report again when it is over"
    lasting = life.model_copy(update={"expires_at": None})
    told = step(lasting, EventKind.REFRESH_REQUESTED, NOW + HOUR - SECOND, **report).state
    assert told.declined_s == NEWEST.forced_interval.total_seconds() * 4 + 1
    failing = life.model_copy(
        update={"caller_retry_at": NOW + 2 * HOUR, "reason": ErrorCode.PROVIDER_UNREACHABLE}
    )
    refused = step(failing, EventKind.REFRESH_REQUESTED, NOW + HOUR, **report)
    assert (refused.command, refused.state.refusal) == (Command.NOTHING, ErrorCode.PROVIDER_UNREACHABLE)
