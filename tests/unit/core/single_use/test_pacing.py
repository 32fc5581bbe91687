"""Refreshes that no caller waits for, near the limit of their provider."""

from dataclasses import replace

import pytest

from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.single_use.pacing import (
    LONGEST_S,
    LONGEST_TURN_S,
    Pace,
    Share,
    answered,
    postponed,
    wait_for_reset,
    wait_for_share,
)

ONE, OTHER = ConnectionId("con_1"), ConnectionId("con_2")


@pytest.mark.parametrize(
    ("requests", "window_s", "most", "span_s"),
    [(1, 60, 1, 60), (8, 60, 6, 60), (2000, 3600, 30, 72), (50_000, 86_400, 30, 69.12)],
)
def test_refreshes_ahead_use_three_quarters_of_a_limit_evenly(
    requests: int, window_s: float, most: int, span_s: float
):
    share = Share.of(requests, window_s)
    assert (share.most, share.span_s) == (most, pytest.approx(span_s))
    assert share.most * window_s / share.span_s <= max(requests * 0.75, 1) * 1.01


def test_one_waits_until_the_oldest_of_a_span_has_left_it():
    share = Share(most=3, span_s=60)
    assert wait_for_share(Pace(), share, None) == 0
    assert wait_for_share(Pace(), share, 61) == 0
    assert wait_for_share(Pace(), share, 45) == 15
    assert wait_for_share(Pace(), share, -3600) == 3660, "a worker whose clock is ahead has written it"
    assert wait_for_share(Pace(running=3), share, None) == 20, (
        "those that run count before the store has them"
    )


@pytest.mark.parametrize(
    ("share", "first", "longest"),
    [(Share(most=3, span_s=60), [15, 35, 55, 75], LONGEST_TURN_S), (None, [15, 15.5, 16, 16.5], LONGEST_S)],
)
def test_each_postponed_one_gets_a_turn_of_its_own(share: Share | None, first: list[float], longest: float):
    pace, waits = Pace(), list[float]()
    for _ in range(600):
        pace, wait = postponed(pace, 100, 15, share, 0.5)
        waits.append(wait)
    assert waits[:4] == first
    assert max(waits) <= longest
    assert waits[-1] == longest * 0.75, "who finds no turn comes again, spread by chance"


def test_nothing_left_holds_the_others_until_the_reset():
    pace = answered(Pace(), 100, 99, ONE, 30)
    assert [wait_for_reset(pace, now) for now in (100, 129, 130, 1000)] == [30, 1, 0, 0]
    assert wait_for_reset(answered(Pace(), 100, 99, ONE, 86_400), 100) == LONGEST_S
    assert answered(Pace(), 100, 99, ONE, None) == Pace()


def test_a_limit_of_one_connection_holds_no_other():
    """Another one is served while nothing should be left: the word was about the first alone."""
    held = answered(Pace(), 100, 99, ONE, 60)
    crossing = answered(held, 105, 99.5, OTHER, None)
    assert wait_for_reset(crossing, 105) == 55, "it was sent before, so it proves nothing"
    assert wait_for_reset(answered(held, 105, 104, ONE, 60), 105) == 60
    served = answered(held, 105, 104, OTHER, 60)
    assert wait_for_reset(served, 105) == 0
    assert answered(served, 200, 199, ONE, 60) == served, "later words are not believed either"
    assert served.individual
    assert wait_for_reset(answered(held, 170, 169, OTHER, 60), 170) == 60, "after the reset it says nothing"


def test_a_new_pace_needs_no_memory():
    assert replace(answered(Pace(), 0, 0, ONE, None), running=0) == Pace()
