"""A provider that fails every other request: the circuit stays closed, and retries are what is rationed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use import retry_budget
from evergrant_server.core.single_use.circuit_breaker import (
    Admission,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)
from evergrant_server.core.single_use.retry_budget import BreakerRules, LastFailure, RetryBudget
from tests.unit.core.single_use.test_fleet_outage import DOWN, HOUR, NOW, Fleet

ERROR = ErrorCode.PROVIDER_ERROR
ONE, OTHER, THIRD = (ConnectionId(f"con_{number}") for number in range(3))
PLAIN = BreakerRules(
    threshold=1000, first_gap=10, recovery=100, retries=2, retry_share=0.25, retry_rate=0.5, well=4,
    longest_limit=1000,
)  # fmt: skip
OPENS_NEVER = BreakerRules(threshold=10**6)


def missed(*connections: ConnectionId, at: float = 0, rules: BreakerRules = PLAIN) -> CircuitBreaker:
    it = CircuitBreaker()
    for connection in connections:
        it = failed(it, at, rules, ERROR, None, probe=False, connection=connection)
    return it


def spent(it: CircuitBreaker, number: float, at: float = 0) -> CircuitBreaker:
    return replace(it, budget=replace(it.budget, spent=number, spent_at=at))


def test_a_try_after_one_that_failed_spends_budget_and_a_first_one_does_not():
    it = missed(ONE)
    assert it.budget == RetryBudget({ONE: LastFailure(0, ERROR)})
    assert admit(it, 8, PLAIN, 0, OTHER) == (it, Admission(0.0))
    assert admit(it, 8, PLAIN, 0) == (it, Admission(0.0)), "nobody's"
    assert admit(it, 8, PLAIN, 0, ONE) == (spent(it, 1, 8), Admission(0.0, retry=True))
    assert admit(spent(it, 1, 8), 9, PLAIN, 0, ONE)[0] == spent(it, 1.5, 9), "half of it came back"


def test_a_retry_without_budget_is_sent_away_until_time_has_earned_one():
    it = spent(missed(ONE), 2, 100)
    assert admit(it, 101, PLAIN, 0, ONE) == (it, Admission(None, 1.0, last_failure=ERROR))
    assert admit(it, 101, PLAIN, 0, OTHER) == (it, Admission(0.0)), "a first try is never"
    assert admit(it, 102, PLAIN, 0, ONE)[1] == Admission(0.0, retry=True)
    assert admit(it, 500, PLAIN, 0, ONE)[0] == spent(it, 1, 500), "and no more than a whole budget is kept"
    two = spent(missed(ONE, OTHER), 2, 100)
    assert admit(two, 100, PLAIN, 0.5, ONE)[1].retry_after == 2 + 0.5 * 2 / 0.5, "spread"
    many = replace(PLAIN, recovery=3)
    assert admit(two, 100, many, 0.5, ONE)[1].retry_after == 2 + 0.5 * 3, "over no more than a recovery"


def test_an_answer_earns_a_share_and_clears_its_connection():
    it = spent(missed(ONE, OTHER), 2, 100)
    it = answered(it, 101, PLAIN, ONE)
    assert it == CircuitBreaker(budget=RetryBudget({OTHER: LastFailure(0, ERROR)}, 1.25, 101, served=1))
    it = answered(it, 101, PLAIN)
    assert it == CircuitBreaker(budget=RetryBudget({OTHER: LastFailure(0, ERROR)}, 1.0, 101, served=2))
    assert admit(it, 101, PLAIN, 0, ONE)[1] == Admission(0.0), "its next one is a first try"


def test_a_full_budget_without_failures_equals_a_new_one():
    assert answered(missed(ONE), 1, PLAIN, ONE) == CircuitBreaker()
    assert answered(spent(missed(ONE), 0.25), 0, PLAIN, ONE) == CircuitBreaker()
    left = answered(spent(missed(ONE), 0.5), 0, PLAIN, ONE)
    assert left == CircuitBreaker(budget=RetryBudget({}, 0.25, 0, served=1))
    assert answered(left, 0, PLAIN, ONE) == CircuitBreaker()
    assert answered(spent(missed(ONE, OTHER), 1), 100, PLAIN, ONE).budget == RetryBudget(
        {OTHER: LastFailure(0, ERROR)}, served=1
    )


def test_a_provider_that_has_recovered_fills_the_budget():
    it = spent(missed(ONE), 2, 0)
    for served in range(1, PLAIN.well):
        it = answered(it, 0, PLAIN, OTHER)
        assert it.budget.spent == 2 - served * PLAIN.retry_share
    assert answered(it, 0, PLAIN, OTHER).budget == RetryBudget(
        {ONE: LastFailure(0, ERROR)}, served=PLAIN.well
    )
    again = failed(it, 0, PLAIN, ERROR, None, probe=False, connection=OTHER)
    assert again.budget.served == 0, "in a row"
    assert answered(again, 0, PLAIN, OTHER).budget.spent == it.budget.spent - PLAIN.retry_share


def test_a_failure_that_is_long_ago_makes_no_retry():
    it = spent(missed(ONE), 2, 1000)
    assert admit(it, 999.5, PLAIN, 0, ONE)[1].last_failure is ERROR
    assert admit(it, 1000, PLAIN, 0, ONE)[1] == Admission(0.0)
    assert answered(it, 999, PLAIN, OTHER).budget.missed == {ONE: LastFailure(0, ERROR)}
    assert answered(it, 1000, PLAIN, OTHER).budget.missed == {}
    later = failed(missed(ONE), 1000, PLAIN, DOWN, None, probe=False, connection=OTHER)
    assert later.budget.missed == {OTHER: LastFailure(1000, DOWN)}


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_budget, "MAX_REMEMBERED", 2)


@pytest.mark.usefixtures("room_for_two")
def test_the_oldest_failure_is_dropped_for_the_newest():
    it = missed(ONE, OTHER)
    it = failed(it, 5, PLAIN, DOWN, None, probe=False, connection=ONE)
    assert list(it.budget.missed.items()) == [(OTHER, LastFailure(0, ERROR)), (ONE, LastFailure(5, DOWN))]
    it = failed(it, 6, PLAIN, ERROR, None, probe=False, connection=THIRD)
    assert list(it.budget.missed) == [ONE, THIRD]


def test_what_was_spent_without_a_word_from_the_provider_is_given_back():
    it = spent(missed(ONE), 1.5, 8)
    assert released(it, probe=False, retry=True) == spent(it, 0.5, 8)
    assert released(spent(it, 1, 8), probe=False, retry=True) == missed(ONE)
    assert released(it, probe=False) is it
    counted = replace(it, budget=replace(it.budget, served=3))
    assert released(counted, probe=False, retry=True).budget.served == 3


def test_a_rate_limit_makes_no_retry():
    """A rate-limited connection comes back after its Retry-After."""
    it = failed(CircuitBreaker(), 0, PLAIN, ErrorCode.PROVIDER_RATE_LIMITED, 5, probe=False, connection=ONE)
    assert it.budget == RetryBudget()


@pytest.mark.usefixtures("room_for_two")
def test_an_open_and_a_recovering_breaker_neither_use_nor_lose_the_budget():
    rules = replace(PLAIN, threshold=2)
    it = spent(missed(ONE, OTHER, rules=rules), 2)
    assert it.opened
    assert admit(it, 20, rules, 0, ONE)[1] == Admission(0.0, probe=True)
    late = failed(it, 1, rules, ERROR, None, probe=False, connection=THIRD)
    assert list(late.budget.missed) == [OTHER, THIRD], "sent before it opened"
    it = answered(admit(it, 0, rules, 0, ONE)[0], 0, rules, ONE)
    assert it == CircuitBreaker(
        recovering_since=0,
        next_turn=0.5,
        budget=RetryBudget({OTHER: LastFailure(0, ERROR)}, 1.75, 0, served=1),
    )
    assert admit(it, 0.5, rules, 0, OTHER)[1] == Admission(0.0)
    assert answered(it, 0, rules, THIRD).budget.spent == 1.5
    assert admit(replace(it, failures=1), 100, rules, 0, ONE)[0] == CircuitBreaker(budget=it.budget)
    tight = spent(it, 2, 100)
    assert admit(tight, 100, rules, 0, OTHER)[1].last_failure is ERROR, "closed again"
    assert failed(tight, 1, rules, ERROR, None, probe=False, connection=OTHER).budget.spent == 2


def test_without_a_threshold_there_is_no_budget_either():
    off = BreakerRules(threshold=0, retries=0)
    it = failed(CircuitBreaker(), 0, off, ERROR, None, probe=False, connection=ONE)
    assert it == CircuitBreaker()
    assert admit(it, 0, off, 0, ONE)[1] == Admission(0.0)


STEPS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from("afu"), st.floats(0, 30), st.floats(0, 0.99)), max_size=80
)


@settings(deadline=None)
@given(STEPS)
def test_whatever_comes_retries_stay_within_what_was_earned_and_first_tries_pass(
    steps: Sequence[tuple[int, str, float, float]],
):
    rules = BreakerRules(threshold=10**6, retries=3, well=10**6)
    it, now, retries, earned, missing = CircuitBreaker(), 0.0, 0, rules.retries, set[int]()
    for number, outcome, passed, share in steps:
        now, earned = now + passed, earned + passed * rules.retry_rate
        connection = ConnectionId(f"con_{number}")
        it, leave = admit(it, now, rules, share, connection)
        assert leave.retry == (number in missing and leave.delay is not None)
        if leave.delay is None:
            assert number in missing
            assert leave.retry_after > 0
            after = admit(it, now + leave.retry_after + 0.01, rules, share, connection)[1]
            assert after.retry, "it comes back in time, if nobody else took what was earned"
            continue
        retries += leave.retry
        if outcome == "a":
            it, earned = answered(it, now, rules, connection), earned + rules.retry_share
            missing.discard(number)
        elif outcome == "f":
            it = failed(it, now, rules, ERROR, None, probe=False, connection=connection)
            missing.add(number)
        else:
            it, retries = released(it, probe=False, retry=leave.retry), retries - leave.retry
        assert retries <= earned + 1e-6
        assert len(it.budget.missed) == len(missing)
    for number in missing:
        it = answered(it, now, rules, ConnectionId(f"con_{number}"))
    later = now + rules.retries / rules.retry_rate
    assert answered(it, later, rules).budget == RetryBudget()


class HalfServed(Fleet):
    """For an hour every other request fails: never five in a row, so that the circuit stays closed."""

    def __init__(self, rules: BreakerRules) -> None:
        begin = NOW + 0.75 * HOUR
        super().__init__(1000, (begin, begin + HOUR), asking=200)
        self.circuit_rules = rules
        self.missing: set[int] = set()  # whose last request failed
        self.tried: set[int] = set()
        self.count: Counter[str] = Counter()

    def refreshed(self, number: int, at: datetime) -> GrantResult:
        elapsed, rules, mine = (at - NOW).total_seconds(), self.circuit_rules, ConnectionId(f"con_{number}")
        self.circuit, leave = admit(self.circuit, elapsed, rules, self.share(number), mine)
        if leave.delay is None:
            assert number in self.missing, "a first try is never held back"
            self.count["held back"] += 1
            return GrantResult(failure=leave.last_failure, retry_after=leave.retry_after)
        if self.away[0] <= at < self.away[1]:
            self.tried.add(number)
            self.count["retries" if number in self.missing else "first tries"] += 1
            if (self.count["retries"] + self.count["first tries"]) % 2:
                self.missing.add(number)
                self.circuit = failed(self.circuit, elapsed, rules, ERROR, None, probe=False, connection=mine)
                return GrantResult(failure=ERROR)
            self.count["answers"] += 1
        self.missing.discard(number)
        self.circuit = answered(self.circuit, elapsed, rules, mine)
        return self.granted(number, at)


def test_a_thousand_connections_and_a_provider_that_fails_half_of_their_calls_for_an_hour():
    rules = BreakerRules()
    fleet = HalfServed(rules)
    fleet.live(fleet.away[1])
    waiting, count = sorted(fleet.missing), fleet.count
    assert len(fleet.tried) == 1000
    assert count["first tries"] >= 1000
    earned = rules.retries + 3600 * rules.retry_rate + rules.retry_share * count["answers"]
    assert 0.6 * earned < count["retries"] <= earned
    fleet.live(fleet.away[1] + 3 * HOUR)
    assert len(fleet.served) == 1000
    assert (fleet.missing, fleet.circuit) == (set(), CircuitBreaker())
    asked = [fleet.served[number] - fleet.away[1] for number in waiting if number < fleet.asking]
    assert asked
    assert max(asked) < timedelta(minutes=15), "whoever is asked for by the next question or two"
