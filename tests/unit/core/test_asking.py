"""Who wants the same newer token shares one refresh, and who has to wait for a person hears again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.lifecycle.timers import no_token_to_protect
from evergrant_server.core.lifecycle.token_requests import callers_can_be_told, with_waiting_caller
from evergrant_server.core.lifecycle.transition import Command, Transition, next_step
from evergrant_server.core.messages.connection import (
    ConnectionState,
    EventKind,
    GrantResult,
    LifecycleEvent,
    RefreshReason,
    RequestContext,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
BEFORE, NEWEST = RULES[5], RULES[NEWEST_RULES]
ACTIVE = ConnectionState(
    state=LifecycleState.ACTIVE, generation=1, obtained_at=NOW - HOUR, expires_at=NOW, installed_at=NOW - HOUR,
    refreshable=True, policy="on_demand",
)  # fmt: skip
NEWER = GrantResult(
    state=LifecycleState.ACTIVE, generation=2, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True
)  # fmt: skip
DEAD = GrantResult(failure=ErrorCode.GRANT_REJECTED)


def step(life: ConnectionState, event: EventKind, rules: Any = NEWEST, **brings: Any) -> Transition:
    return next_step(
        life, LifecycleEvent(kind=event, context=RequestContext(by="app:x"), **brings), NOW, rules, 0.5
    )


@pytest.mark.parametrize(("rules", "refreshes"), [(NEWEST, 1), (BEFORE, 50)])
def test_fifty_who_want_a_newer_token_than_the_same_one_share_one_refresh(rules: Any, refreshes: int):
    life, done = ACTIVE, 0
    for _ in range(50):
        asked = step(life, EventKind.ROTATION_REQUESTED, rules, seen_generation=1)
        life = asked.state
        if asked.command is Command.REFRESH:
            done += 1
            news = NEWER.model_copy(update={"generation": life.generation + 1})
            life = step(life, EventKind.REFRESH_ENDED, rules, result=news).state
    assert done == refreshes


def test_who_names_no_generation_wants_a_newer_one_than_the_newest():
    assert (
        step(ACTIVE.model_copy(update={"generation": 7}), EventKind.ROTATION_REQUESTED).command
        is Command.REFRESH
    )
    assert step(ACTIVE, EventKind.ROTATION_REQUESTED, seen_generation=2).command is Command.REFRESH, (
        "this run is behind"
    )


@pytest.mark.parametrize(("rules", "hears"), [(NEWEST, ("pipeline",)), (BEFORE, ())])
def test_who_finds_out_that_the_grant_is_dead_hears_again(rules: Any, hears: tuple[str, ...]):
    asked = step(ACTIVE, EventKind.TOKEN_REQUESTED, rules, reply_to="pipeline")
    assert (asked.command, asked.state.reply_later) == (Command.REFRESH, ())
    after = step(asked.state, EventKind.REFRESH_ENDED, rules, result=DEAD).state
    assert after.state is LifecycleState.NEEDS_REAUTH
    life = with_waiting_caller(after, "pipeline", rules)
    assert life.reply_later == hears
    assert not callers_can_be_told(life, rules)
    assert with_waiting_caller(life, "pipeline", rules).reply_later == hears, "once"


@pytest.mark.parametrize(("rules", "hears"), [(NEWEST, ("pipeline",)), (BEFORE, ())])
def test_who_asks_while_an_account_has_to_be_chosen_hears_again(rules: Any, hears: tuple[str, ...]):
    choosing = ACTIVE.model_copy(update={"choosing": True, "expires_at": NOW + HOUR})
    life = with_waiting_caller(
        step(choosing, EventKind.TOKEN_REQUESTED, rules, reply_to="pipeline").state, "pipeline", rules
    )
    assert life.reply_later == hears
    assert callers_can_be_told(life, rules) is (rules is BEFORE)
    chosen = step(life, EventKind.ACCOUNT_CHOSEN, rules, reason="1").state
    assert callers_can_be_told(chosen, rules)


def test_nobody_waits_where_there_is_a_token_or_nothing_will_come():
    assert with_waiting_caller(ACTIVE, "pipeline", NEWEST) == ACTIVE
    dead = ACTIVE.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    assert with_waiting_caller(dead, None, NEWEST) == dead
    assert callers_can_be_told(ACTIVE.model_copy(update={"state": LifecycleState.REVOKED}), NEWEST)


@pytest.mark.parametrize(("rules", "first", "last"), [(NEWEST, 0, 99), (RULES[7], 50, 149)])
def test_the_hundred_who_came_first_hear_again_and_who_comes_later_hears_that_nothing_follows(
    rules: Any, first: int, last: int
):
    dead = ACTIVE.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    for caller in range(150):
        dead = with_waiting_caller(dead, f"pipeline-{caller}", rules)
    assert len(dead.reply_later) == 100
    assert (dead.reply_later[0], dead.reply_later[-1]) == (f"pipeline-{first}", f"pipeline-{last}")


LASTING = ACTIVE.model_copy(update={"expires_at": None, "generation": 3})


def report(life: ConnectionState, rules: Any = NEWEST, **what: Any) -> Transition:
    return step(life, EventKind.REFRESH_REQUESTED, rules, refresh_reason=RefreshReason.UNAUTHORIZED, **what)


def test_a_token_that_was_reported_is_over_for_every_later_try():
    """It has no end of its own, so nothing else can say so."""
    assert not no_token_to_protect(LASTING, NOW + 9999 * HOUR, NEWEST)
    reported = report(LASTING, seen_generation=3)
    assert reported.command is Command.REFRESH
    assert no_token_to_protect(reported.state, NOW, NEWEST)
    pending = GrantResult(failure=ErrorCode.REFRESH_PENDING)
    failed = step(reported.state, EventKind.REFRESH_ENDED, result=pending).state
    assert no_token_to_protect(failed, NOW, NEWEST), "also for the try that comes by itself"
    renewed = NEWER.model_copy(update={"generation": 4, "expires_at": None})
    after = step(failed, EventKind.REFRESH_ENDED, result=renewed).state
    assert not no_token_to_protect(after, NOW, NEWEST), "of the next token nothing is said"


def test_a_report_that_comes_between_two_tries_is_heeded_by_the_next():
    waits = LASTING.model_copy(
        update={"retry_at": NOW + HOUR, "failures": 1, "reason": ErrorCode.REFRESH_PENDING}
    )
    reported = report(waits)
    assert (reported.command, reported.state.refusal) == (Command.NOTHING, ErrorCode.REFRESH_PENDING)
    assert no_token_to_protect(reported.state, NOW, NEWEST)


def test_a_report_that_is_declined_says_nothing():
    """Its token is new, and the one before was refused as well: the provider's API may have other reasons."""
    again = LASTING.model_copy(update={"forced": 1, "forced_at": NOW})
    declined = report(again)
    assert declined.state.declined_s is not None
    assert not no_token_to_protect(declined.state, NOW, NEWEST)
    assert report(LASTING, RULES[7]).state.reported is None, "as histories have it"
