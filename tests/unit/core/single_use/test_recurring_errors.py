"""Whose an error is that keeps coming back: every fact that the decision reads, and its boundaries."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.single_use.recurring_errors import (
    ASK_AGAIN_AFTER,
    RECURS_FOR,
    RECURS_FOR_ALONE,
    ErrorKind,
    RecurringError,
)
from tests.fakes.databases import NOW

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
REFUSED, KEEPS_FAILING = ErrorCode.REFRESH_REFUSED, ErrorCode.REFRESH_KEEPS_FAILING
UNKNOWN = ErrorCode.OUTCOME_UNKNOWN
ONE_GRANT = RecurringError(
    kind=ErrorKind.UNNAMED,
    repeated=True,
    since=NOW - ASK_AGAIN_AFTER,
    refused_since=NOW - ASK_AGAIN_AFTER,
    client_changed_at=NOW - HOUR,
    worked_at=NOW - HOUR,
)
A_WEEK = NOW - RECURS_FOR_ALONE
A_DAY_ALONE = replace(
    ONE_GRANT, kind=ErrorKind.REFUSED, worked_at=None, others_worked=(NOW - RECURS_FOR, NOW - RECURS_FOR)
)
AFTER_A_LOST_ANSWER = replace(
    ONE_GRANT,
    kind=ErrorKind.REFUSED,
    undecided_since=NOW - ASK_AGAIN_AFTER,
    may_be_spent=True,
    answer_lost=True,
)
AFTER_A_REPAIR = replace(
    ONE_GRANT,
    kind=ErrorKind.REQUEST,
    worked_at=None,
    others_fail=True,
    client_refused_at=NOW - HOUR - SECOND,
    undecided_since=NOW - ASK_AGAIN_AFTER,
)
ALONE = replace(
    ONE_GRANT, kind=ErrorKind.REFUSED, since=A_WEEK, refused_since=A_WEEK, client_changed_at=A_WEEK
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, REFUSED),
        ({"kind": ErrorKind.REQUEST}, None),
        ({"kind": ErrorKind.REQUEST, "token_active": False}, REFUSED),
        ({"kind": ErrorKind.REFUSED}, None),
        ({"kind": ErrorKind.OTHER}, None),
        ({"refused_since": NOW - ASK_AGAIN_AFTER + SECOND}, None),
        ({"repeated": False}, None),
        ({"worked_at": None}, None),
        ({"worked_at": NOW - HOUR - SECOND}, None),
        ({"others_fail": True}, None),
        ({"others_refused": True}, None),
        ({"others_refused": True, "token_active": False}, REFUSED),
        ({"token_active": True}, None),
        ({"token_active": False, "repeated": False, "refused_since": NOW}, REFUSED),
        ({"token_active": False, "others_fail": True}, None),
    ],
)
def test_a_refusal_without_a_usable_error(changes: dict[str, object], reason: ErrorCode | None):
    assert replace(ONE_GRANT, **changes).reason_to_reconnect(NOW) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, UNKNOWN),
        ({"kind": ErrorKind.REQUEST, "worked_at": None}, UNKNOWN),
        ({"others_fail": True, "others_refused": True}, UNKNOWN),
        ({"repeated": False}, UNKNOWN),
        ({"may_be_spent": False}, None),
        ({"undecided_since": None}, None),
        ({"undecided_since": NOW - ASK_AGAIN_AFTER + SECOND}, None),
        ({"others_fail_as_well": True}, None),
        ({"others_fail_as_well": True, "others_worked": (NOW - HOUR, NOW)}, UNKNOWN),
        ({"answer_lost": False}, None),
        ({"answer_lost": False, "others_worked": (NOW - HOUR, NOW)}, UNKNOWN),
        ({"answer_lost": False, "others_worked": (NOW - HOUR, NOW - ASK_AGAIN_AFTER)}, None),
    ],
)
def test_two_refusals_after_a_use_of_unknown_outcome_decide_whatever_their_name(
    changes: dict[str, object], reason: ErrorCode | None
):
    assert replace(AFTER_A_LOST_ANSWER, **changes).reason_to_reconnect(NOW) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, KEEPS_FAILING),
        ({"kind": ErrorKind.OTHER}, None),
        ({"kind": ErrorKind.OTHER, "others_worked": (A_WEEK, NOW)}, KEEPS_FAILING),
        ({"repeated": False}, None),
        ({"others_fail": True}, KEEPS_FAILING),
        ({"others_worked": None}, None),
        ({"others_worked": (NOW - RECURS_FOR + SECOND, NOW)}, None),
        ({"others_worked": (NOW - RECURS_FOR * 2, NOW - RECURS_FOR - SECOND)}, None),
    ],
)
def test_an_error_that_others_dont_meet(changes: dict[str, object], reason: ErrorCode | None):
    assert replace(A_DAY_ALONE, **changes).reason_to_reconnect(NOW) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, KEEPS_FAILING),
        ({"kind": ErrorKind.OTHER}, None),
        ({"kind": ErrorKind.REQUEST, "worked_at": None}, None),
        ({"kind": ErrorKind.REQUEST, "worked_at": A_WEEK, "token_active": True}, KEEPS_FAILING),
        ({"repeated": False}, None),
        ({"others_fail": True}, None),
        ({"others_refused": True}, KEEPS_FAILING),
        ({"refused_since": A_WEEK + SECOND}, None),
        ({"undecided_since": A_WEEK + SECOND}, None),
        ({"undecided_since": A_WEEK, "refused_since": A_WEEK - HOUR}, KEEPS_FAILING),
        ({"client_changed_at": A_WEEK + SECOND}, None),
        ({"others_worked": (A_WEEK + SECOND, NOW - RECURS_FOR - SECOND)}, None),
        ({"others_worked": (A_WEEK, NOW - RECURS_FOR - SECOND)}, KEEPS_FAILING),
    ],
)
def test_a_refusal_that_nothing_explains(changes: dict[str, object], reason: ErrorCode | None):
    assert replace(ALONE, **changes).reason_to_reconnect(NOW) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, REFUSED),
        ({"kind": ErrorKind.UNNAMED, "others_fail_as_well": True}, REFUSED),
        ({"client_refused_at": NOW - HOUR}, REFUSED),
        ({"client_changed_at": NOW - ASK_AGAIN_AFTER}, REFUSED),
        ({"undecided_since": NOW - ASK_AGAIN_AFTER + SECOND}, None),
        ({"client_refused_at": None}, None),
        ({"client_refused_at": NOW - HOUR + SECOND}, None),
        ({"client_changed_at": NOW - ASK_AGAIN_AFTER + SECOND}, None),
    ],
)
def test_a_token_that_was_sent_with_a_wrong_client_may_have_ended(
    changes: dict[str, object], reason: ErrorCode | None
):
    assert replace(AFTER_A_REPAIR, **changes).reason_to_reconnect(NOW) is reason
