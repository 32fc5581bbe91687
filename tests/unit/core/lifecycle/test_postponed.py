"""A refresh that was postponed for its provider's limit: nothing is wrong, and no caller is held."""

from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.grants import may_come_later
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import EventKind, RefreshReason
from tests.unit.core.lifecycle.steps import ACTIVE, HOUR, MINUTE, NOW, failed, granted, step, timer_of, woken

DUE = NOW + HOUR - 5 * MINUTE
WAIT = timedelta(seconds=40)
STORED = {"generation": 3, "obtained_at": NOW, "expires_at": NOW + HOUR, "refreshable": True}
LATER = GrantResult(**STORED, postponed_s=40)


def postponed(**before: object):
    return step(ACTIVE.model_copy(update=before), EventKind.REFRESH_ENDED, DUE, result=LATER).state


def test_it_comes_again_at_its_turn_and_nothing_counts_as_a_failure():
    for before in ({}, {"failures": 2, "retry_at": DUE, "caller_retry_at": DUE}):
        life = postponed(**before)
        assert timer_of(life).at == DUE + WAIT
        assert woken(life) is (Command.REFRESH if before else Command.REFRESH_IF_LEASED)
        assert (life.failures, life.generation, life.refusal) == (before.get("failures", 0), 3, None)


def test_a_caller_who_waits_causes_a_refresh_at_once():
    life = postponed()
    for kind in (EventKind.REFRESH_REQUESTED, EventKind.TOKEN_REQUESTED, EventKind.ROTATION_REQUESTED):
        assert step(life, kind, DUE + timedelta(seconds=1)).command is Command.REFRESH


def test_a_lease_that_had_a_token_is_told_when_to_ask_again():
    life = postponed()
    assert life.declined_s == 40, "the one that caused it"
    ahead = {"seen_generation": 3, "refresh_reason": RefreshReason.DUE, "ahead": True}
    again = step(life, EventKind.REFRESH_REQUESTED, DUE + WAIT / 4, **ahead)
    assert (again.command, again.state.declined_s) == (Command.NOTHING, 30)
    assert step(life, EventKind.REFRESH_REQUESTED, DUE + WAIT, **ahead).command is Command.REFRESH


@pytest.mark.parametrize(
    "result", [granted(4), failed(ErrorCode.PROVIDER_ERROR), failed(ErrorCode.GRANT_REJECTED)]
)
def test_what_comes_next_ends_it(result: GrantResult):
    life = step(postponed(), EventKind.REFRESH_ENDED, DUE + MINUTE, result=result).state
    assert life.postponed_until is None


def test_a_postponed_one_of_an_idle_connection_is_not_looked_at_again():
    idle = step(postponed(), EventKind.REFRESH_ENDED, DUE + MINUTE, result=GrantResult(not_leased=True)).state
    assert (idle.leased, idle.postponed_until) == (False, None)


def test_a_consent_ends_it():
    life = step(postponed(), EventKind.CODE_EXCHANGE_ENDED, DUE + MINUTE, result=granted(4)).state
    assert life.postponed_until is None


def test_what_cannot_be_made_up_for_may_not_come_later():
    assert may_come_later(ACTIVE, DUE)
    for now_or_never in ({"short_lived": True}, {"ends_together": True}):
        assert not may_come_later(ACTIVE.model_copy(update=now_or_never), DUE)
    idle = ACTIVE.model_copy(update={"refresh_token_idle_s": HOUR.total_seconds()})
    assert may_come_later(idle, NOW + 50 * MINUTE)
    assert not may_come_later(idle, NOW + 54 * MINUTE), "its refresh token is about to end"
