"""When a control request is sent, what token it has, and what makes two answers equal."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evergrant_server.core.single_use.control_request import (
    ANSWER_KEPT_FOR,
    FOR_HOST_EVERY,
    FOR_INTEGRATION_EVERY,
    ControlFacts,
    ControlStep,
    comparable_answer,
    made_up_token,
)
from evergrant_server.core.single_use.recurring_errors import ASK_AGAIN_AFTER, UndecidedRefusals
from tests.fakes.databases import NOW

SECOND = timedelta(seconds=1)
BEFORE = NOW - 10 * SECOND
REFUSALS = UndecidedRefusals(BEFORE - ASK_AGAIN_AFTER, "a", BEFORE - ASK_AGAIN_AFTER, BEFORE)
FACTS = ControlFacts(REFUSALS, worked_at=NOW)
SEND, COMPARE, NOTHING = ControlStep.SEND, ControlStep.COMPARE, ControlStep.NOTHING


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, SEND),
        ({"worked_at": None}, NOTHING),
        ({"worked_at": BEFORE}, NOTHING),
        ({"worked_at": BEFORE + SECOND}, SEND),
        ({"refusals": replace(REFUSALS, answered_before=None)}, NOTHING),
        ({"refusals": replace(REFUSALS, answered_since=BEFORE - ASK_AGAIN_AFTER + SECOND)}, NOTHING),
        ({"unequal_at": BEFORE}, NOTHING),
        ({"unequal_at": REFUSALS.answered_since - SECOND}, SEND),
        ({"makes_tokens_of_anything": True}, NOTHING),
        ({"requested_at": NOW - FOR_INTEGRATION_EVERY + SECOND}, NOTHING),
        ({"requested_at": NOW - FOR_INTEGRATION_EVERY}, SEND),
        ({"host_requested_at": NOW - FOR_HOST_EVERY + SECOND}, NOTHING),
        ({"host_requested_at": NOW - FOR_HOST_EVERY}, SEND),
        ({"kept": "a", "kept_at": NOW - ANSWER_KEPT_FOR, "requested_at": NOW}, COMPARE),
        ({"kept": "a", "kept_at": NOW - ANSWER_KEPT_FOR - SECOND}, SEND),
        ({"kept": "a", "kept_at": NOW - SECOND, "client_changed_at": NOW}, SEND),
        ({"kept": None, "kept_at": NOW, "requested_at": NOW}, NOTHING),
    ],
)
def test_when_one_is_sent(changes: dict[str, object], step: ControlStep):
    assert replace(FACTS, **changes).step(NOW) is step


def test_refusals_in_a_row_are_followed_as_long_as_their_answer_is_the_same():
    first = UndecidedRefusals(NOW, "a", NOW)
    assert not first.came_twice_before
    second = first.followed_by("a", NOW + 40 * SECOND, NOW)
    assert not second.came_twice_before
    third = second.followed_by("a", NOW + 80 * SECOND, NOW + 40 * SECOND)
    assert third.came_twice_before
    other = third.followed_by("b", NOW + 90 * SECOND, NOW + 80 * SECOND)
    assert (other.since, other.answered_since, other.answered_before) == (NOW, NOW + 90 * SECOND, None)


@pytest.mark.parametrize(
    ("token", "prefix", "alphabet"),
    [
        ("ghr_1B4a2e77838347a7E420ce178F2E7c6912E169246c", "ghr_", "0123456789abcdefABCDEF"),
        ("8f14e45fceea167a5a36dedd4bea2543", "", "0123456789abcdef"),
        ("482910473829104738291047382910473829104738", "", "0123456789"),
        ("ory_rt_LxKq3VbN8sPz0YwTj5Hc.9dFgR2mUaEoI7tBk", "ory_rt_", None),
        ("short", "", "0123456789abcdefghijklmnopqrstuvwxyz"),
    ],
)
def test_a_made_up_token_has_the_shape_of_the_real_one(token: str, prefix: str, alphabet: str | None):
    made = {made_up_token(token) for _ in range(20)}
    assert len(made) == 20
    for one in made:
        assert one.startswith(prefix)
        assert one != token
        assert len(one) >= len(token)
        assert all(mine == its for mine, its in zip(one, token, strict=False) if its in "._-")
        if alphabet is not None:
            assert set(one.removeprefix(prefix)) <= set(alphabet)


@pytest.mark.parametrize("token", ["", "a", "short", "1" * 20, "8f14e45fceea167a5a36dedd4bea2543", "x" * 400])
def test_128_bits_of_it_are_random(token: str):
    chosen: list[int] = []

    def choice(letters: object) -> str:
        text = str(letters)
        chosen.append(len(text))
        return text[0]

    made_up_token(token, choice)
    total = 1
    for count in chosen:
        total *= count
    assert total >= 2**128


def answer(body: str, status: int = 400, media_type: str = "application/json", sent: str = "rt-1") -> str:
    return comparable_answer(status, media_type, body.encode(), (sent,))


SAID = '{"error": "invalid_request", "error_description": "AADSTS70008: over"}'


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (answer(SAID), answer(SAID, media_type="application/json;charset=UTF-8")),
        (answer('{"e": "rt-1 is over"}'), answer('{"e": "rt-2 is over"}', sent="rt-2")),
        (
            answer("id 6f9619ff-8b86-d011-b42d-00c04fc964ff at 2026-11-30T23:25:17.123Z"),
            answer("id 11111111-8b86-d011-b42d-00c04fc964ff at 2026-12-01T00:00:01Z"),
        ),
        (answer("on Mon, 30 Nov 2026 23:25:17 GMT"), answer("on Tue, 01 Dec 2026 00:00:01 GMT")),
        (answer("at 1764545117 #a8f2c1d9e0b7a6f5"), answer("at 1764545118 #00f2c1d9e0b7a6f5")),
        (answer('{"a": 1,\n "b": 2}'), answer('{"a": 1, "b": 2}')),
    ],
)
def test_answers_that_differ_in_echoes_ids_and_times_are_equal(first: str, second: str):
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        answer(SAID, status=401),
        answer(SAID, media_type="text/plain"),
        answer(SAID.replace("invalid_request", "invalid_grant")),
        answer(SAID.replace("AADSTS70008", "AADSTS50196")),
        answer(""),
    ],
)
def test_answers_that_say_something_else_are_not(other: str):
    assert answer(SAID) != other
