"""A provider that is down for hours: few sends, one at a time, and no stampede when it is back."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.lifecycle.schedule import RULES as SCHEDULE
from evergrant_server.core.single_use.circuit_breaker import (
    Admission,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)
from evergrant_server.core.single_use.retry_budget import BreakerRules

RULES = BreakerRules()
DOWN = ErrorCode.PROVIDER_UNREACHABLE


def opened(now: float = 0.0) -> CircuitBreaker:
    it = CircuitBreaker()
    for _ in range(RULES.threshold):
        it = failed(it, now, RULES, DOWN, None, probe=False)
    return it


def test_a_failure_while_it_recovers_opens_it_again():
    it = answered(admit(opened(), 100, RULES, 0)[0], 100, RULES)
    it = failed(it, 101, RULES, DOWN, None, probe=False)
    assert it.opened
    it = answered(admit(it, 200, RULES, 0)[0], 200, RULES)
    assert admit(it, 200 + RULES.recovery, RULES, 0)[0] == CircuitBreaker()


LIMITED = ErrorCode.PROVIDER_RATE_LIMITED


def limited(
    it: CircuitBreaker, number: int, wait: float | None = 30, now: float = 0, probe: bool = False
) -> CircuitBreaker:
    return failed(it, now, RULES, LIMITED, wait, probe=probe, connection=ConnectionId(f"con_{number}"))


@pytest.mark.parametrize("wait", [None, 30, 86_400])
def test_a_connection_that_is_rate_limited_stops_no_other(wait: float | None):
    """Some providers limit each user: it waits by its own schedule, and the others are served."""
    it = CircuitBreaker()
    for now in range(100):
        it = limited(it, now % (RULES.limited - 1), wait, now)
        assert admit(it, now, RULES, 0)[1].delay == 0


def test_a_limit_is_believed_for_an_hour_and_an_outage_for_the_longest_gap():
    """As long as a connection's own schedule believes. A page that says "down for an hour" is a guess."""
    assert timedelta(seconds=RULES.longest_limit) == SCHEDULE[NEWEST_RULES].longest_retry_after
    down = failed(replace(opened(), probing_since=0), 0, RULES, DOWN, 86_400, probe=True)
    assert down.next_probe == RULES.longest_gap
    told = limited(limited(limited(CircuitBreaker(), 1), 2), 3, 86_400)
    assert told.next_probe == RULES.longest_limit
    probed = limited(admit(told, 3600, RULES, 0)[0], 1, 86_400, 3600, probe=True)
    assert probed.next_probe == 2 * RULES.longest_limit, "and so each time"


def test_one_that_is_rate_limited_ends_no_recovery():
    it = answered(admit(opened(), 100, RULES, 0)[0], 100, RULES)
    for now in range(101, 110):
        it = limited(it, 1, 600, now)
        assert not it.opened
    assert limited(limited(it, 2, 600, 110), 3, 600, 110).opened


def test_a_probe_that_is_rate_limited_alone_prolongs_an_outage_by_a_gap_and_not_by_its_own_time():
    it = limited(admit(opened(), 100, RULES, 0)[0], 1, 600, 100, probe=True)
    assert it.opened
    assert it.next_probe - 100 < 2 * RULES.first_gap
    for number in range(RULES.limited):
        it = limited(admit(it, it.next_probe, RULES, 0)[0], number, 600, it.next_probe, probe=True)
    assert admit(it, it.next_probe - 1, RULES, 0)[1].delay is None
    assert it.next_probe > 600, "several in a row: it is the provider's word to everybody"


def test_an_outage_opens_it_despite_rate_limits_between():
    it = CircuitBreaker()
    for _ in range(RULES.threshold):
        assert not it.opened
        it = limited(failed(it, 0, RULES, DOWN, None, probe=False), 1)
    assert it.opened


# --- to the number, with rules that are easy to reckon with ----------------------------------

PLAIN = BreakerRules(
    threshold=2, limited=1, first_gap=10, gap_growth=2, longest_gap=35, longest_limit=50, first_rate=4,
    recovery=60, patience=2,
)  # fmt: skip
OPEN = CircuitBreaker(failures=2, reason=DOWN, opened=True, next_probe=10)
PROBING = replace(OPEN, probing_since=10)


def test_the_first_failure_is_remembered_and_the_second_opens():
    first = failed(CircuitBreaker(), 0, PLAIN, DOWN, None, probe=False)
    assert first == CircuitBreaker(failures=1, reason=DOWN)
    assert failed(first, 0, PLAIN, DOWN, None, probe=False) == OPEN
    assert failed(OPEN, 1, PLAIN, DOWN, None, probe=False) == OPEN, "sent before it opened"


def test_the_gaps_between_probes_grow_and_a_longer_retry_after_counts():
    it, gaps = OPEN, []
    for _ in range(3):
        it = failed(it, 100, PLAIN, DOWN, None, probe=True)
        gaps.append(it.next_probe - 100)
    assert gaps == [20, 35, 35]
    assert (it.probes, it.probing_since) == (3, None)
    endless = failed(replace(OPEN, probes=100_000), 0, PLAIN, DOWN, None, probe=True)
    assert endless.next_probe == PLAIN.longest_gap, "a year of probes is no number too large"
    again = failed(PROBING, 15, PLAIN, DOWN, None, probe=True)
    assert again.probing_since is None
    assert admit(again, again.next_probe, PLAIN, 0)[1].probe, "before it would have been taken for lost"
    assert failed(OPEN, 100, PLAIN, LIMITED, 30, probe=True).next_probe == 130
    assert failed(OPEN, 100, PLAIN, LIMITED, 5, probe=True).next_probe == 120
    assert failed(OPEN, 100, PLAIN, LIMITED, 60, probe=True).next_probe == 150
    assert failed(OPEN, 100, PLAIN, DOWN, 60, probe=True).next_probe == 135
    assert failed(PROBING, 100, PLAIN, LIMITED, None, probe=True).reason is LIMITED, "the newest is told"


@pytest.mark.parametrize(
    ("code", "retry_after", "opens"), [(LIMITED, 0.5, 0.5), (LIMITED, None, 10), (DOWN, 30, None)]
)
def test_a_shared_limit_opens_it_for_its_retry_after(
    code: ErrorCode, retry_after: float | None, opens: float | None
):
    it = failed(CircuitBreaker(), 0, PLAIN, code, retry_after, probe=False)
    assert (it.opened, it.next_probe) == (opens is not None, opens or 0.0)


def test_limits_are_counted_by_connection_beside_the_failures():
    two = replace(PLAIN, limited=2)
    one, other = ConnectionId("con_1"), ConnectionId("con_2")
    first = failed(CircuitBreaker(failures=1), 0, two, LIMITED, 30, probe=False, connection=one)
    assert first == CircuitBreaker(failures=1, limited=(one,))
    assert failed(first, 0, two, LIMITED, 30, probe=False, connection=one) == first
    second = failed(first, 0, two, LIMITED, 30, probe=False, connection=other)
    assert second == CircuitBreaker(1, LIMITED, opened=True, next_probe=30, limited=(one, other))
    third = failed(second, 50, two, LIMITED, 30, probe=True, connection=ConnectionId("con_3"))
    assert (third.limited, third.next_probe) == ((one, other), 80)
    served = answered(replace(first, recovering_since=0), 1, two)
    assert served == CircuitBreaker(recovering_since=0)


def test_a_circuit_that_is_turned_off_opens_for_no_limit_either():
    off = replace(PLAIN, threshold=0)
    assert failed(CircuitBreaker(), 0, off, LIMITED, 30, probe=False) == CircuitBreaker()


def test_a_probe_leaves_when_its_time_has_come_and_the_next_when_it_is_lost():
    assert not admit(OPEN, 9.9, PLAIN, 0)[1].probe
    assert admit(OPEN, 10, PLAIN, 0) == (PROBING, Admission(0.0, probe=True))
    assert not admit(PROBING, 129.9, PLAIN, 0)[1].probe
    assert admit(PROBING, 130, PLAIN, 0)[0].probing_since == 130


def test_a_refused_request_comes_back_after_the_next_probe_or_a_turn_beyond_the_patience():
    later = replace(OPEN, next_probe=100)
    assert admit(later, 60, PLAIN, 0) == (later, Admission(None, 40))
    assert admit(later, 60, PLAIN, 0.5)[1].retry_after == 45, "up to a quarter later"
    assert admit(later, 95, PLAIN, 0)[1].retry_after == PLAIN.first_gap, "and no sooner than the first gap"
    it = CircuitBreaker(recovering_since=0, next_turn=42)
    assert admit(it, 40, PLAIN, 0.5)[1] == Admission(2), "as long as its patience"
    it = replace(it, next_turn=43)
    assert admit(it, 40, PLAIN, 0.5) == (it, Admission(None, 3 + 0.5 * 20 / 2))


def test_after_a_probe_turns_are_given_at_a_rate_that_doubles():
    it = answered(PROBING, 20, PLAIN)
    assert it == CircuitBreaker(recovering_since=20, next_turn=20.25)
    it, first = admit(it, 20, PLAIN, 0)
    assert (first, it.next_turn) == (Admission(0.25), 20.5)
    it, faster = admit(it, 30, PLAIN, 0)
    assert (faster, it.next_turn) == (Admission(0.0), 30.125)


def test_it_is_closed_a_while_after_the_last_failure():
    it = CircuitBreaker(failures=1, recovering_since=0, next_turn=0)
    assert admit(it, 59.9, PLAIN, 0)[0].recovering_since == 0
    assert admit(it, 60, PLAIN, 0) == (CircuitBreaker(), Admission(0.0))
    assert answered(it, 59.9, PLAIN) == replace(it, failures=0)
    assert answered(it, 60, PLAIN) == CircuitBreaker()
    later = replace(it, recovering_since=20)
    assert answered(later, 79.9, PLAIN) == replace(later, failures=0)


def test_only_a_lost_probe_makes_way_for_another():
    assert released(PROBING, probe=True) == OPEN
    assert released(PROBING, probe=False) == PROBING
    closed = CircuitBreaker(probing_since=1)
    assert released(closed, probe=True) is closed
