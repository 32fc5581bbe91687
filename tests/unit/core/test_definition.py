"""Which version answers for whom, and what a stage's counts decide."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.core.definition import (
    LONGEST_STAGE,
    CheckLevel,
    CheckResult,
    Definition,
    DefinitionState,
    Rollout,
    RolloutVerdict,
    judge_rollout,
    serving_versions,
)
from evergrant_server.core.ids import Tenant
from tests.fakes.rows import a_definition

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def a_version(version: int = 1, **changes: Any) -> Definition:
    facts = {"version": version, "state": DefinitionState.CHECKING, "share": 0.0, **changes}
    return a_definition(Tenant("acme"), {"name": "acme-crm"}, NOW, **facts)


def staged(share: float = 0.05, **changes: Any) -> Definition:
    return a_version(2, state=DefinitionState.STAGED, share=share, **changes)


@pytest.mark.parametrize(
    ("good", "bad", "after", "said"),
    [
        (0, 0, 0 * HOUR, RolloutVerdict.WAIT),
        (0, 2, 0 * HOUR, RolloutVerdict.WAIT),  # one or two may be the provider's doing
        (0, 3, 0 * HOUR, RolloutVerdict.ROLL_BACK),
        (27, 3, 0 * HOUR, RolloutVerdict.WAIT),  # a tenth is the most, and not more than it
        (26, 3, 0 * HOUR, RolloutVerdict.ROLL_BACK),
        (26, 3, 2 * HOUR, RolloutVerdict.ROLL_BACK),  # however long it lasted
        (20, 0, HOUR - timedelta(seconds=1), RolloutVerdict.WAIT),
        (20, 0, HOUR, RolloutVerdict.ROLL_ON),
        (18, 2, HOUR, RolloutVerdict.ROLL_ON),
        (19, 0, HOUR, RolloutVerdict.WAIT),  # it has seen too little
        (0, 0, HOUR * LONGEST_STAGE, RolloutVerdict.ROLL_ON),  # in a larger share somebody may be
        (19, 0, HOUR * LONGEST_STAGE, RolloutVerdict.ROLL_ON),  # but not for ever
        (0, 2, HOUR * LONGEST_STAGE, RolloutVerdict.HOLD),  # nothing speaks for it
        (1, 2, HOUR * LONGEST_STAGE, RolloutVerdict.HOLD),
        (0, 20, HOUR, RolloutVerdict.ROLL_BACK),
    ],
)
def test_what_a_stage_decides(good: int, bad: int, after: timedelta, said: RolloutVerdict):
    assert judge_rollout(staged(succeeded=good, failed=bad), NOW + after) is said


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (0, 0, RolloutVerdict.HOLD),
        (0, 1, RolloutVerdict.HOLD),
        (1, 0, RolloutVerdict.ROLL_ON),
        (20, 0, RolloutVerdict.ROLL_ON),
    ],
)
def test_a_version_without_a_working_refresh_does_not_become_active(
    good: int, bad: int, said: RolloutVerdict
):
    assert judge_rollout(staged(1.0, succeeded=good, failed=bad), NOW + HOUR * LONGEST_STAGE) is said
    assert judge_rollout(staged(1.0, succeeded=good, failed=bad), NOW + HOUR * LONGEST_STAGE * 100) is said
    asks_for_none = staged(1.0, rollout=Rollout(enough=0))
    assert judge_rollout(asks_for_none, NOW + HOUR) is RolloutVerdict.ROLL_ON


def test_a_rollout_goes_through_its_shares_and_counts_each_stage_anew():
    now = staged(succeeded=9, failed=1)
    second = now.advanced(NOW)
    assert (second.share, second.succeeded, second.failed) == (0.25, 0, 0)
    third = second.advanced(NOW)
    assert (third.state, third.share) == (DefinitionState.STAGED, 1.0)
    assert third.advanced(NOW).state is DefinitionState.ACTIVE


def test_checks_make_it_unsound_and_what_replaces_nothing_is_active_at_once():
    assert a_version().started(NOW, replaces=False).state is DefinitionState.ACTIVE
    assert a_version().started(NOW, replaces=True).share == 0.05
    fine = CheckResult(check="hosts", level=CheckLevel.WARNING, detail="a new host")
    wrong = CheckResult(check="token_endpoint", level=CheckLevel.PROBLEM, detail="404")
    assert a_version().with_checks([fine], NOW).state is DefinitionState.WAITING
    assert a_version().with_checks([fine, wrong], NOW).state is DefinitionState.UNSOUND


@given(st.floats(min_value=0.01, max_value=0.99), st.integers(min_value=0, max_value=10_000))
def test_a_connection_stays_served_when_the_share_grows(share: float, number: int):
    small = staged(share)
    larger = small.model_copy(update={"share": min(share * 2, 1.0)})
    assert larger.serves(f"con_{number}") or not small.serves(f"con_{number}")


def test_a_share_is_about_that_many():
    it = staged(0.25)
    assert 2_300 < sum(it.serves(f"con_{number}") for number in range(10_000)) < 2_700


@pytest.mark.parametrize("state", [it for it in DefinitionState if not it.serves])
def test_only_what_was_approved_answers(state: DefinitionState):
    assert serving_versions([a_version(state=state, share=1.0)], "con_1") == (None,)


def test_the_newest_comes_first_and_what_answered_before_second_while_it_is_staged():
    first = a_version(1, state=DefinitionState.ACTIVE, share=1.0)
    second = staged(1.0)
    assert serving_versions([first, second], "con_1") == (second, first)
    assert serving_versions([second], "con_1") == (second, None)  # the catalogue's own
    assert serving_versions([first], None) == (first,)
    outside = staged(1e-12)
    assert serving_versions([first, outside], "con_1") == (first,)


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 1.0, 1.5)])
def test_a_rollout_rises_to_all(shares: tuple[float, ...]):
    with pytest.raises(ValueError, match="shares"):
        Rollout(shares=shares)
