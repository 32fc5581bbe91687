"""Requests for a token: shared refreshes, forced refreshes, and callers that are told again."""

from typing import Any

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.grants import no_token_to_protect
from evergrant_server.core.lifecycle.refresh import callers_can_be_told, with_waiting_caller
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind, RefreshReason
from tests.unit.core.lifecycle.steps import HOUR, NOW, granted, step

ACTIVE = ConnectionState(
    state=LifecycleState.ACTIVE, generation=1, obtained_at=NOW - HOUR, expires_at=NOW,
    installed_at=NOW - HOUR, refreshable=True, policy="on_demand",
)  # fmt: skip
NEWER = granted(2)
DEAD = GrantResult(failure=ErrorCode.GRANT_REJECTED)


def test_fifty_rotations_of_one_generation_share_one_refresh():
    life, done = ACTIVE, 0
    for _ in range(50):
        asked = step(life, EventKind.ROTATION_REQUESTED, seen_generation=1)
        life = asked.state
        if asked.command is Command.REFRESH:
            done += 1
            news = NEWER.model_copy(update={"generation": life.generation + 1})
            life = step(life, EventKind.REFRESH_ENDED, result=news).state
    assert done == 1


def test_a_rotation_without_a_generation_always_refreshes():
    later = ACTIVE.model_copy(update={"generation": 7})
    assert step(later, EventKind.ROTATION_REQUESTED).command is Command.REFRESH
    behind = step(ACTIVE, EventKind.ROTATION_REQUESTED, seen_generation=2)
    assert behind.command is Command.REFRESH, "this run is behind"


def test_a_caller_whose_request_exposed_the_dead_grant_is_told_again():
    asked = step(ACTIVE, EventKind.TOKEN_REQUESTED, reply_to="pipeline")
    assert (asked.command, asked.state.waiting_callers) == (Command.REFRESH, ())
    after = step(asked.state, EventKind.REFRESH_ENDED, result=DEAD).state
    assert after.state is LifecycleState.NEEDS_REAUTH
    life = with_waiting_caller(after, "pipeline")
    assert life.waiting_callers == ("pipeline",)
    assert not callers_can_be_told(life)
    assert with_waiting_caller(life, "pipeline").waiting_callers == ("pipeline",), "once"


def test_a_caller_during_an_account_choice_is_told_again():
    choosing = ACTIVE.model_copy(update={"choice_pending": True, "expires_at": NOW + HOUR})
    life = with_waiting_caller(
        step(choosing, EventKind.TOKEN_REQUESTED, reply_to="pipeline").state, "pipeline"
    )
    assert life.waiting_callers == ("pipeline",)
    assert not callers_can_be_told(life)
    chosen = step(life, EventKind.ACCOUNT_CHOSEN, reason="1").state
    assert callers_can_be_told(chosen)


def test_no_caller_waits_for_a_usable_or_a_final_connection():
    assert with_waiting_caller(ACTIVE, "pipeline") == ACTIVE
    dead = ACTIVE.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    assert with_waiting_caller(dead, None) == dead
    assert callers_can_be_told(ACTIVE.model_copy(update={"state": LifecycleState.REVOKED}))


def test_the_first_hundred_callers_are_told_again():
    dead = ACTIVE.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    for caller in range(150):
        dead = with_waiting_caller(dead, f"pipeline-{caller}")
    assert len(dead.waiting_callers) == 100
    assert (dead.waiting_callers[0], dead.waiting_callers[-1]) == ("pipeline-0", "pipeline-99")


LASTING = ACTIVE.model_copy(update={"expires_at": None, "generation": 3})


def report(life: ConnectionState, **what: Any) -> Transition:
    return step(life, EventKind.REFRESH_REQUESTED, refresh_reason=RefreshReason.UNAUTHORIZED, **what)


def test_a_token_that_was_reported_is_over_for_every_later_try():
    """It has no end of its own, so nothing else can say so."""
    assert not no_token_to_protect(LASTING, NOW + 9999 * HOUR)
    reported = report(LASTING, seen_generation=3)
    assert reported.command is Command.REFRESH
    assert no_token_to_protect(reported.state, NOW)
    pending = GrantResult(failure=ErrorCode.REFRESH_PENDING)
    failed = step(reported.state, EventKind.REFRESH_ENDED, result=pending).state
    assert no_token_to_protect(failed, NOW), "also for the try that comes by itself"
    renewed = NEWER.model_copy(update={"generation": 4, "expires_at": None})
    after = step(failed, EventKind.REFRESH_ENDED, result=renewed).state
    assert not no_token_to_protect(after, NOW), "of the next token nothing is said"


def test_a_report_that_comes_between_two_tries_is_heeded_by_the_next():
    waits = LASTING.model_copy(
        update={"retry_at": NOW + HOUR, "failures": 1, "reason": ErrorCode.REFRESH_PENDING}
    )
    reported = report(waits)
    assert (reported.command, reported.state.refusal) == (Command.NOTHING, ErrorCode.REFRESH_PENDING)
    assert no_token_to_protect(reported.state, NOW)


def test_a_report_that_is_declined_says_nothing():
    """Its token is new, and the one before was refused as well: the provider's API may have other reasons."""
    again = LASTING.model_copy(update={"forced_refreshes": 1, "last_forced_at": NOW})
    declined = report(again)
    assert declined.state.declined_s is not None
    assert not no_token_to_protect(declined.state, NOW)
