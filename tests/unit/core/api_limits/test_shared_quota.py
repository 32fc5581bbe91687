"""A quota and the apps that share it: never more calls than it has, and max-min fair parts of them."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evergrant_server.core.api_limits.limits import ApiLimits, CountedCall, DocumentedQuota, LimitedCall
from evergrant_server.core.api_limits.reply import ReplyLimit, ReplyLimits
from evergrant_server.core.api_limits.shared_quota import Quota

NORMAL = 2
APPS = ("a", "b", "c", "d")


def calls(quota: Quota, app: str, now: float, most: int = 10_000, weight: int = NORMAL) -> int:
    """How many calls the app makes now, if it makes as many as it may."""
    made = 0
    while made < most and quota.may_call(app, weight, now):
        quota.take(app, now)
        quota.ended(app)
        made += 1
    return made


moments = st.lists(st.tuples(st.floats(0, 300), st.sampled_from(APPS), st.integers(1, 30)), max_size=60)


@given(moments, st.integers(1, 100))
def test_no_window_has_more_calls_than_documented_wherever_the_providers_begins(
    tries: list[tuple[float, str, int]], most: int
):
    quota, sent = Quota(most, 60, 0), []
    for now, app, wanted in sorted(tries):
        sent += [now] * calls(quota, app, now, wanted)
    assert all(sum(began <= at < began + 60 for at in sent) <= most for began in sent)


@given(moments, st.integers(1, 100), st.floats(0, 59))
def test_a_provider_that_names_its_windows_is_never_asked_too_often(
    tries: list[tuple[float, str, int]], most: int, offset: float
):
    quota, served = Quota(most, 60, 0), Counter[int]()
    for number, (now, app, wanted) in enumerate(sorted(tries)):
        for _ in range(wanted):
            window = int((now + offset) // 60)
            if served[window] and quota.may_call(app, NORMAL, now):  # the first call of each learns its end
                quota.take(app, now)
            elif served[window] or not quota.may_call(app, NORMAL, now):
                continue
            else:
                quota.take(app, now)
            served[window] += 1
            quota.ended(app)
            ends_in = (window + 1) * 60 - offset - now
            quota.learn(ReplyLimit("", most, max(most - served[window], 0), ends_in, 60), number, now, now)
    assert all(count <= most for count in served.values())


@given(
    st.lists(st.tuples(st.floats(0, 200), st.sampled_from(APPS), st.floats(0, 3)), max_size=150),
    st.integers(1, 30),
    st.floats(0, 59),
)
def test_replies_that_come_late_and_in_any_order_let_no_call_too_many_through(
    tries: list[tuple[float, str, float]], most: int, offset: float
):
    """The provider counts a call when it is sent, and its reply takes up to three seconds."""
    limits, served = ApiLimits(), Counter[int]()
    quota = DocumentedQuota(requests=most, window_s=60, per="integration")
    under_way: list[tuple[float, int, CountedCall, ReplyLimits]] = []
    for number, (now, app, takes) in enumerate(sorted(tries)):
        for at, _, counted, reply in sorted(under_way, key=lambda answer: answer[:2]):
            if at <= now:
                limits.answered(counted, reply, at)
        under_way = [answer for answer in under_way if answer[0] > now]
        call = LimitedCall(app, NORMAL, "con_1", "int_1", "GET users", (quota,))
        counted = limits.take(call, now)
        if counted is None:
            continue
        window = int((now + offset) // 60)
        served[window] += 1
        reply = ReplyLimit("", most, max(most - served[window], 0), (window + 1) * 60 - offset - now)
        under_way.append((now + takes, number, counted, ReplyLimits((reply,))))
    # until the first reply names the windows' ends, any 60 seconds have no more than `most`
    assert all(count <= most for count in served.values())


@given(st.permutations(APPS), st.integers(2, 4), st.integers(20, 300))
def test_apps_that_want_everything_have_even_parts_and_together_all(apps: list[str], number: int, most: int):
    quota, made = Quota(most, 60, 0), Counter[str]()
    for app in apps[:number]:
        quota.may_call(app, NORMAL, 0)
    for step in range(120):
        for app in apps[:number]:
            made[app] += calls(quota, app, step / 2)
    # what is kept for an app that never came is given away by the end of the window
    assert most - most // (number + 1) // 60 - number <= sum(made.values()) <= most
    assert max(made.values()) - min(made.values()) <= 1


@given(st.integers(10, 1000), st.floats(0, 59))
def test_a_greedy_app_leaves_a_part_to_one_that_nobody_has_seen(most: int, late: float):
    quota = Quota(most, 60, 0)
    for step in range(int(late) + 1):
        calls(quota, "greedy", float(step))
    left_over = 1 - late / 60
    assert calls(quota, "late", late) >= int(most / 4 * left_over) - 1  # and the next one as much of the rest


def test_an_app_alone_has_half_at_once_and_all_in_a_window():
    quota = Quota(100, 60, 0)
    assert calls(quota, "a", 0) == 50
    assert calls(quota, "a", 30) == 25
    assert calls(quota, "a", 59.99) == 24
    assert [calls(quota, "a", 60.0), quota.left(60.0)] == [1, 0]  # the others are in the last 60 seconds


def test_a_steady_app_waits_for_nobody():
    quota = Quota(60, 60, 0)
    assert [calls(quota, "a", float(second), 1) for second in range(55)] == [1] * 55


def test_what_an_app_doesnt_use_the_others_have():
    quota = Quota(90, 60, 0)
    for app in ("a", "b"):
        calls(quota, app, 0, 1)
    assert calls(quota, "a", 0) == 29  # a third, with one newcomer's part
    assert 43 <= calls(quota, "a", 59.9) <= 59  # b has made one call, and wants no more


def test_parts_are_by_weight():
    quota = Quota(120, 60, 0)
    for app, weight in (("high", 4), ("low", 1)):
        quota.may_call(app, weight, 0)
    made = {app: calls(quota, app, 0, weight=weight) for app, weight in (("low", 1), ("high", 4))}
    assert made == {"low": 18, "high": 68}  # and 34 are a normal newcomer's


@example([(299.99999999999994, "a", 1)], 1, True)
@example([(57.10546838589787, "a", 1)], 1, False)  # plus 63 and minus 63 it is another float
@given(moments, st.integers(1, 40), st.booleans())
def test_when_it_says_there_is_room_there_is_and_not_before(
    tries: list[tuple[float, str, int]], most: int, names_its_end: bool
):
    quota = Quota(most, 60, 0)
    if names_its_end:
        quota.learn(ReplyLimit("", most, most, 60.0, 60.0), 0, 0.0, 0.0)
    now = 0.0
    for now, app, wanted in sorted(tries):
        calls(quota, app, now, wanted)
    if quota.may_call("a", NORMAL, now):
        return
    ready_at = quota.ready_at("a", now)
    assert now < ready_at <= now + 130
    before = now + (ready_at - now) * 0.98
    if before < ready_at and (names_its_end or before < quota.end):  # not between neighbours among floats
        assert not quota.may_call("a", NORMAL, before)
    assert quota.may_call("a", NORMAL, ready_at + 1e-3)


def test_who_waits_behind_others_of_its_app_is_told_a_later_time():
    quota = Quota(10, 60, 0)
    quota.learn(ReplyLimit("", 10, 10, 60.0, 60.0), 0, 0.0, 0.0)
    calls(quota, "a", 0)
    assert 0 < quota.ready_at("a", 0) < quota.ready_at("a", 0, ahead=2) < 60


def test_a_reply_counts_what_others_have_used_and_what_is_under_way():
    quota = Quota(100, 60, 0)
    for _ in range(3):
        assert quota.may_call("a", NORMAL, 0)
        quota.take("a", 0)
    quota.ended("a")
    quota.learn(ReplyLimit("", 100, 40, 30.0), 1, 0, 0)
    assert quota.left(0) == 38  # two calls under way may not be counted in the 40


def test_an_older_calls_reply_says_nothing_about_what_is_left():
    quota = Quota(100, 60, 0)
    quota.learn(ReplyLimit("", 100, 10, 30.0), 2, 0, 0)
    quota.learn(ReplyLimit("", 100, 60, 30.0), 1, 0, 0)
    assert quota.left(0) == 10


def test_the_window_that_a_reply_named_ends_and_all_calls_are_there_again():
    quota = Quota(100, 60, 0)
    quota.learn(ReplyLimit("", 100, 0, 20.0, 60.0), 1, 0, 0)
    assert not quota.may_call("a", NORMAL, 19.9)
    assert quota.ready_at("a", 19.9) == pytest.approx(20.0)
    assert quota.may_call("a", NORMAL, 20.0)
    assert quota.left(20.0) == 100


def test_a_call_that_isnt_sent_is_given_back():
    quota = Quota(2, 60, 0)
    assert quota.may_call("a", NORMAL, 0)
    quota.take("a", 0)
    assert not quota.may_call("a", NORMAL, 0)
    quota.give_back("a")
    assert quota.may_call("a", NORMAL, 0)


def test_nothing_is_sent_in_a_pause():
    quota = Quota(None, 7, 0)
    quota.pause(7, 0)
    assert not quota.may_call("a", NORMAL, 6.9)
    assert quota.ready_at("a", 6.9) == 7
    assert quota.may_call("a", NORMAL, 7)
