"""The decisions a reader would look up; requests for a token share refreshes, and callers are told again."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.connections.connection import (
    IllegalStateChange,
    LifecycleState,
    RevocationOutcome,
    StateChange,
    state_after,
)
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.grants import no_token_to_protect
from evergrant_server.core.lifecycle.refresh import (
    callers_can_be_told,
    ensure_fresh_refusal,
    with_waiting_caller,
)
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind, RefreshReason
from tests.unit.core.lifecycle.steps import (
    ACTIVE,
    HOUR,
    MINUTE,
    NEWEST,
    NOW,
    connection,
    failed,
    granted,
    step,
    timer_of,
)


@pytest.mark.parametrize(
    ("policy", "do"), [("warm", Command.REFRESH), ("adaptive", Command.REFRESH_IF_LEASED)]
)
def test_policies_that_refresh_ahead(policy: str, do: Command):
    life = ACTIVE.model_copy(update={"policy": policy})
    due = timer_of(life)
    assert step(life, EventKind.TIMER_FIRED, due.at).command is do


def test_a_refused_grant_needs_its_subject_and_is_not_tried_again():
    refused = step(ACTIVE, EventKind.REFRESH_ENDED, result=failed(ErrorCode.GRANT_REJECTED)).state
    assert (refused.state, refused.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)
    assert next_timer(refused, NEWEST) is None
    assert step(refused, EventKind.REFRESH_REQUESTED, seen_generation=3).command is Command.NOTHING


def test_a_token_that_never_expires_needs_no_timer_and_no_refresh():
    life = ACTIVE.model_copy(update={"expires_at": None, "refreshable": False})
    assert next_timer(life, NEWEST) is None
    assert step(life, EventKind.REFRESH_REQUESTED, seen_generation=3).command is Command.NOTHING


def test_a_token_that_lands_while_revoking_is_kept_only_to_be_revoked():
    news = GrantResult(state=LifecycleState.REVOKING, generation=4, obtained_at=NOW, expires_at=NOW + HOUR)
    landed = step(ACTIVE, EventKind.REFRESH_ENDED, result=news)
    assert (landed.state.state, landed.command) == (LifecycleState.REVOKING, Command.REVOKE)


def test_revocation_is_never_given_up():
    life = step(ACTIVE, EventKind.REVOCATION_REQUESTED, reason="left the company").state
    for _ in range(50):
        no = RevocationResult(failure=ErrorCode.PROVIDER_ERROR)
        life = step(life, EventKind.REVOCATION_ENDED, revocation=no).state
        due = timer_of(life)
        assert due.at - NOW <= timedelta(hours=1.25)
        assert step(life, EventKind.TIMER_FIRED, due.at).command is Command.REVOKE
    yes = RevocationResult(revocation=RevocationOutcome.CONFIRMED)
    assert step(life, EventKind.REVOCATION_ENDED, revocation=yes).state.state is LifecycleState.REVOKED


def test_a_revocation_is_requested_once_and_forgets_what_failed_before():
    troubled = ACTIVE.model_copy(update={"failures": 3, "retry_at": NOW + HOUR})
    first = step(troubled, EventKind.REVOCATION_REQUESTED, reason="left")
    changes = {
        "state": LifecycleState.REVOKING,
        "reason": ErrorCode.CONNECTION_REVOKED,
        "revoke_reason": "left",
        "failures": 0,
        "retry_at": None,
    }
    assert first == Transition(troubled.model_copy(update=changes), Command.BEGIN_REVOCATION)
    assert step(first.state, EventKind.REVOCATION_REQUESTED, reason="again") == Transition(first.state)


def test_what_a_revocation_meets_is_told_until_it_is_confirmed():
    """A wait for the tokens of an open attempt is no failure of the provider."""
    meets = [
        (RevocationResult(failure=ErrorCode.PROVIDER_ERROR, retry_after=1800.0), ErrorCode.PROVIDER_ERROR),
        (RevocationResult(failure=ErrorCode.REFRESH_PENDING), ErrorCode.PROVIDER_ERROR),
        (RevocationResult(failure=ErrorCode.INTERNAL), ErrorCode.INTERNAL),
    ]
    life = ConnectionState(state=LifecycleState.REVOKING)
    for tries, (result, told) in enumerate(meets, 1):
        life = step(life, EventKind.REVOCATION_ENDED, NOW + tries * MINUTE, revocation=result).state
        assert (life.failures, life.revocation_failure) == (tries, told)
        assert life.revocation_failing_since == NOW + MINUTE
        assert life.retry_at is not None
        assert life.retry_at > NOW + tries * MINUTE
        assert (tries > 1) or life.retry_at == NOW + MINUTE + HOUR / 2
    yes = RevocationResult(revocation=RevocationOutcome.CONFIRMED)
    done = {
        "state": LifecycleState.REVOKED,
        "revocation": RevocationOutcome.CONFIRMED,
        "revocation_failure": None,
        "revocation_failing_since": None,
        "retry_at": None,
    }
    assert step(life, EventKind.REVOCATION_ENDED, revocation=yes).state == life.model_copy(update=done)


def test_a_grant_from_a_clock_that_is_ahead_is_dated_back_as_a_whole():
    ends = {"expires_at": NOW + 2 * HOUR, "refresh_expires_at": NOW + 3 * HOUR}
    ahead = granted(4, at=NOW + HOUR, **ends)
    here = step(ACTIVE, EventKind.REFRESH_ENDED, result=ahead).state
    assert (here.obtained_at, here.expires_at) == (NOW, NOW + HOUR)
    assert here.refresh_expires_at == NOW + 2 * HOUR
    within = granted(4, at=NOW + CLOCK_SKEW, **ends)
    here = step(ACTIVE, EventKind.REFRESH_ENDED, result=within).state
    assert (here.obtained_at, here.refresh_expires_at) == (NOW + CLOCK_SKEW, NOW + 3 * HOUR)


def test_a_code_is_exchanged_once_and_a_failure_leaves_the_consent_open():
    life = ConnectionState(consent_deadline=NOW + HOUR)
    first = step(life, EventKind.CONSENT_GRANTED, consent_id=ConsentId("cns_1"))
    assert first.command is Command.EXCHANGE_CODE
    again = step(first.state, EventKind.CONSENT_GRANTED, consent_id=ConsentId("cns_1"))
    assert again.command is Command.NOTHING
    waits, news = ConnectionState(consent_deadline=NOW + HOUR), failed(ErrorCode.CLIENT_REJECTED)
    after = step(waits, EventKind.CODE_EXCHANGE_ENDED, result=news).state
    assert after.state is LifecycleState.PENDING_CONSENT


def test_ensure_fresh_is_refused_when_the_store_has_the_answer():
    assert ensure_fresh_refusal(ACTIVE, 2) is ErrorCode.STORE_CONFLICT
    assert ensure_fresh_refusal(ACTIVE, 3) is None
    assert ensure_fresh_refusal(ConnectionState(), 0) is ErrorCode.CONSENT_REQUIRED


def test_final_states_have_no_way_out():
    for state in LifecycleState:
        for move in StateChange:
            if state.is_final:
                with pytest.raises(IllegalStateChange):
                    state_after(state, move)
    revoked = ConnectionState(state=LifecycleState.REVOKED, reason=ErrorCode.CONNECTION_REVOKED)
    stands = GrantResult(state=LifecycleState.PENDING_CONSENT, consent_id=ConsentId("cns_1"))
    after = step(revoked, EventKind.CONSENT_NOT_ENDED, result=stands)
    assert (after.state.state, after.command) == (LifecycleState.REVOKED, Command.NOTHING)


def test_a_refresh_that_brings_nothing_newer_is_not_due_again_at_once():
    """A grant that can't be refreshed, looked at by a clock that is behind."""
    expired = NOW + HOUR
    life = ACTIVE.model_copy(update={"refreshable": False})
    news = GrantResult(state=LifecycleState.ACTIVE, generation=3, obtained_at=NOW, expires_at=expired)
    after = step(life, EventKind.REFRESH_ENDED, expired, result=news).state
    due = timer_of(after)
    assert due.at >= expired + NEWEST.first_backoff
    early = step(life, EventKind.REFRESH_ENDED, NOW, result=news).state
    again = timer_of(early)
    assert again.at == expired


def test_what_waits_for_an_unknown_outcome_looks_again_when_the_token_is_over():
    life = ACTIVE.model_copy(update={"cause": FailureCause.LOST_ANSWER, "tries": 12})
    news = GrantResult(failure=ErrorCode.REFRESH_PENDING)
    nearly = NOW + HOUR - timedelta(seconds=30)
    assert step(life, EventKind.REFRESH_ENDED, nearly, result=news).state.retry_at == (
        NOW + HOUR + NEWEST.first_backoff
    )
    over = step(life, EventKind.REFRESH_ENDED, NOW + HOUR, result=news).state
    assert over.retry_at is not None
    assert over.retry_at > NOW + HOUR + timedelta(minutes=10)


def test_a_consent_whose_end_the_store_contradicts_goes_on():
    over = step(ConnectionState(consent_deadline=NOW), EventKind.TIMER_FIRED, NOW + HOUR).state
    assert over.state is LifecycleState.CONSENT_EXPIRED
    revoking = step(over, EventKind.CONSENT_NOT_ENDED, result=GrantResult(state=LifecycleState.REVOKING))
    assert (revoking.state.state, revoking.command) == (LifecycleState.REVOKING, Command.REVOKE)
    waits = GrantResult(state=LifecycleState.PENDING_CONSENT, consent_id=ConsentId("cns_1"))
    exchanging = step(over, EventKind.CONSENT_NOT_ENDED, result=waits)
    assert (exchanging.state.state, exchanging.state.reason) == (LifecycleState.PENDING_CONSENT, None)
    assert exchanging.command is Command.EXCHANGE_CODE
    assert step(over, EventKind.CONSENT_NOT_ENDED, result=granted()).state.state is LifecycleState.ACTIVE
    later = NOW + 2 * HOUR
    postponed = GrantResult(state=LifecycleState.PENDING_CONSENT, consent_deadline=later)
    waiting = step(over, EventKind.CONSENT_NOT_ENDED, result=postponed)
    assert waiting.command is Command.NOTHING
    assert (waiting.state.state, waiting.state.reason) == (LifecycleState.PENDING_CONSENT, None)
    assert timer_of(waiting.state).at == later + NEWEST.consent_grace


def test_a_grant_that_lands_while_revoking_keeps_the_reason():
    held = connection()
    revoking = held.revocation_requested("left", NOW)
    for landed in (revoking.refreshed(NOW), revoking.granted(NOW)):
        assert (landed.state, landed.reason) == (LifecycleState.REVOKING, ErrorCode.CONNECTION_REVOKED)
    rejected = held.rejected(ErrorCode.GRANT_REJECTED, NOW)
    assert rejected.granted(NOW).reason is None


OVER = ConnectionState(
    state=LifecycleState.ACTIVE, generation=1, obtained_at=NOW - HOUR, expires_at=NOW,
    installed_at=NOW - HOUR, refreshable=True, policy="on_demand",
)  # fmt: skip
NEWER = granted(2)
DEAD = GrantResult(failure=ErrorCode.GRANT_REJECTED)


def test_fifty_rotations_of_one_generation_share_one_refresh():
    life, done = OVER, 0
    for _ in range(50):
        asked = step(life, EventKind.ROTATION_REQUESTED, seen_generation=1)
        life = asked.state
        if asked.command is Command.REFRESH:
            done += 1
            news = NEWER.model_copy(update={"generation": life.generation + 1})
            life = step(life, EventKind.REFRESH_ENDED, result=news).state
    assert done == 1


def test_a_rotation_without_a_generation_always_refreshes():
    later = OVER.model_copy(update={"generation": 7})
    assert step(later, EventKind.ROTATION_REQUESTED).command is Command.REFRESH
    behind = step(OVER, EventKind.ROTATION_REQUESTED, seen_generation=2)
    assert behind.command is Command.REFRESH, "this run is behind"


def test_a_caller_whose_request_exposed_the_dead_grant_is_told_again():
    asked = step(OVER, EventKind.TOKEN_REQUESTED, reply_to="pipeline")
    assert (asked.command, asked.state.waiting_callers) == (Command.REFRESH, ())
    after = step(asked.state, EventKind.REFRESH_ENDED, result=DEAD).state
    assert after.state is LifecycleState.NEEDS_REAUTH
    life = with_waiting_caller(after, "pipeline")
    assert life.waiting_callers == ("pipeline",)
    assert not callers_can_be_told(life)
    assert with_waiting_caller(life, "pipeline").waiting_callers == ("pipeline",), "once"


def test_a_caller_during_an_account_choice_is_told_again():
    choosing = OVER.model_copy(update={"choice_pending": True, "expires_at": NOW + HOUR})
    life = with_waiting_caller(
        step(choosing, EventKind.TOKEN_REQUESTED, reply_to="pipeline").state, "pipeline"
    )
    assert life.waiting_callers == ("pipeline",)
    assert not callers_can_be_told(life)
    chosen = step(life, EventKind.ACCOUNT_CHOSEN, reason="1").state
    assert callers_can_be_told(chosen)


def test_no_caller_waits_for_a_usable_or_a_final_connection():
    assert with_waiting_caller(OVER, "pipeline") == OVER
    dead = OVER.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    assert with_waiting_caller(dead, None) == dead
    assert callers_can_be_told(OVER.model_copy(update={"state": LifecycleState.REVOKED}))


def test_the_first_hundred_callers_are_told_again():
    dead = OVER.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})
    for caller in range(150):
        dead = with_waiting_caller(dead, f"pipeline-{caller}")
    assert len(dead.waiting_callers) == 100
    assert (dead.waiting_callers[0], dead.waiting_callers[-1]) == ("pipeline-0", "pipeline-99")


LASTING = OVER.model_copy(update={"expires_at": None, "generation": 3})


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


def test_a_generation_that_a_caller_invented_costs_the_connection_nothing():
    """The store has never had it; the connection's own failures and timers stay as they were."""
    behind = failed(ErrorCode.STORE_BEHIND)
    after = step(ACTIVE, EventKind.REFRESH_ENDED, result=behind, seen_generation=ACTIVE.generation + 997)
    assert after.command is Command.NOTHING
    assert after.state == ACTIVE.model_copy(update={"refusal": ErrorCode.STORE_BEHIND})
    known = step(ACTIVE, EventKind.REFRESH_ENDED, result=behind, seen_generation=ACTIVE.generation)
    assert known.state.failures == 1
