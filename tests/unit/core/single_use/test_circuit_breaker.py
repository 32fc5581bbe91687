"""A provider that is down for hours: few sends, one at a time, and no stampede when it is back."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.lifecycle.schedule import RULES as SCHEDULE
from evergrant_server.core.single_use.circuit_breaker import (
    BreakerRules,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)

RULES = BreakerRules()
DOWN = ErrorCode.PROVIDER_UNREACHABLE


def opened(now: float = 0.0) -> CircuitBreaker:
    it = CircuitBreaker()
    for _ in range(RULES.threshold):
        it = failed(it, now, RULES, DOWN, None, probe=False)
    return it


def test_it_opens_after_failures_in_a_row_and_not_before():
    it = CircuitBreaker()
    for _ in range(RULES.threshold - 1):
        it = failed(it, 0, RULES, DOWN, None, probe=False)
        assert admit(it, 0, RULES, 0)[1].delay == 0
    it = answered(it, 0, RULES)
    assert it == CircuitBreaker(), "an answer in between, be it a refusal, begins the count anew"
    refused = admit(opened(), 1, RULES, 0)[1]
    assert (refused.delay, opened().reason) == (None, DOWN)
    assert refused.retry_after >= RULES.first_gap - 1


def test_one_probe_at_a_time():
    it, first = admit(opened(), 100, RULES, 0)
    assert first.probe
    assert first.delay == 0
    assert admit(it, 100, RULES, 0)[1].delay is None
    assert admit(it, 100 + RULES.probe_timeout, RULES, 0)[1].probe, "a probe that is never heard of is lost"
    assert admit(released(it, probe=True), 100, RULES, 0)[1].probe, "nothing was sent: the next one probes"


def test_an_outage_of_twelve_hours_costs_few_probes_and_a_short_wait_at_its_end():
    """Callers ask every second."""
    it, probes, end = opened(), 0, 12 * 3600
    for now in range(end):
        it, admission = admit(it, now, RULES, 0)
        if admission.delay is not None:
            assert admission.probe
            probes += 1
            it = failed(it, now + 0.5, RULES, DOWN, None, probe=True)
    assert probes < 90
    assert it.next_probe - end <= RULES.longest_gap


def test_a_short_outage_is_over_soon():
    """The gap is about a third of the outage so far."""
    it = opened()
    for now in range(60):
        it, admission = admit(it, now, RULES, 0)
        if admission.probe:
            it = failed(it, now, RULES, DOWN, None, probe=True)
    assert it.next_probe - 60 <= 25


def test_when_it_is_back_the_others_follow_at_a_bounded_rate():
    it, probe = admit(opened(), 100, RULES, 0)
    assert probe.probe
    it = answered(it, 100, RULES)
    sends, now, waiting = [], 100.0, 500
    while waiting:
        it, admission = admit(it, now, RULES, 0.5)
        if admission.delay is None:
            now += 0.25
            continue
        waiting -= 1
        sends.append(now + admission.delay)
    for second in range(60):
        in_it = sum(100 + second <= at < 101 + second for at in sends)
        assert in_it <= RULES.first_rate * 2 ** ((second + 1) / RULES.doubling) + 1
    assert sends[-1] < 100 + RULES.recovery, "and nobody waits for long"


def test_a_failure_while_it_recovers_opens_it_again():
    it = answered(admit(opened(), 100, RULES, 0)[0], 100, RULES)
    it = failed(it, 101, RULES, DOWN, None, probe=False)
    assert it.opened
    it = answered(admit(it, 200, RULES, 0)[0], 200, RULES)
    assert admit(it, 200 + RULES.recovery, RULES, 0)[0] == CircuitBreaker()


def test_a_failure_from_before_it_opened_changes_nothing():
    it = opened()
    assert failed(it, 1, RULES, DOWN, None, probe=False) == it


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


def test_several_rate_limits_in_a_row_open_it_for_a_believable_time():
    for wait, waited in ((30, 30), (3000, 3000), (86_400, 3600), (None, RULES.first_gap)):
        it = CircuitBreaker()
        for number in range(RULES.limited):
            assert not it.opened
            it = limited(it, number, wait)
        assert admit(it, waited - 1, RULES, 0)[1].delay is None
        assert admit(it, waited, RULES, 0)[1].probe


def test_a_limit_is_believed_for_an_hour_and_an_outage_for_the_longest_gap():
    """As long as a connection's own schedule believes. A page that says "down for an hour" is a guess."""
    assert timedelta(seconds=RULES.longest_limit) == SCHEDULE[NEWEST_RULES].longest_retry_after
    down = failed(replace(opened(), probing_since=0), 0, RULES, DOWN, 86_400, probe=True)
    assert down.next_probe == RULES.longest_gap
    told = limited(limited(limited(CircuitBreaker(), 1), 2), 3, 86_400)
    assert told.next_probe == RULES.longest_limit
    probed = limited(admit(told, 3600, RULES, 0)[0], 1, 86_400, 3600, probe=True)
    assert probed.next_probe == 2 * RULES.longest_limit, "and so each time"


def test_one_that_is_served_in_between_begins_the_count_of_the_limited_anew():
    it = CircuitBreaker()
    for number in range(10):
        it = limited(limited(it, number), number + 10)
        it = answered(it, 0, RULES)
    assert it == CircuitBreaker()


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


def test_it_can_be_turned_off():
    off = BreakerRules(threshold=0)
    it = CircuitBreaker()
    for _ in range(100):
        it = failed(it, 0, off, DOWN, None, probe=False)
    assert admit(it, 0, off, 0)[1].delay == 0


def test_refused_requests_come_back_spread():
    waits = {admit(opened(), 1, RULES, share / 10)[1].retry_after for share in range(10)}
    assert len(waits) == 10
