"""What an ended refresh leads to: a new grant, another try, or a new consent. Pure.

Late tokens are never believed as they are: where rotation is strict, another use may have ended
their family meanwhile. They are kept until their own refresh, the verification, has an answer.
"""

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.grant_install import (
    NO_LATE_TOKENS,
    install,
    start_revoking,
    store_is_revoking,
)
from evergrant_server.core.lifecycle.schedule import caller_retry_at, retry_at
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent


def on_refresh_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    result = event.result or GrantResult()
    if store_is_revoking(result):
        return start_revoking(connection, Command.REVOKE)
    if result.not_leased:
        return Transition(connection.model_copy(update={"leased": False, "retry_at": None}))
    if result.failure is None:
        return _installed(connection, result, at)
    if FAILURES[result.failure].kind is FailureKind.RECONNECT_NEEDED:
        return Transition(_rejected(connection, result.failure))
    return Transition(_failed(connection, result, result.failure, at))


def _installed(connection: ConnectionState, result: GrantResult, at: Moment) -> Transition:
    """After a refresh without a newer grant, the next one is due later, even if the grant has expired."""
    after = install(connection, StateChange.REFRESHED, result, at.now)
    state = after.state
    if state.state is not LifecycleState.ACTIVE or state.generation > connection.generation:
        return after
    again = max(state.expires_at or at.now, at.now + at.rules.first_backoff)
    return Transition(state.model_copy(update={"retry_at": again}), after.command)


def _rejected(connection: ConnectionState, code: ErrorCode) -> ConnectionState:
    changes = {
        "state": state_after(connection.state, StateChange.REJECTED),
        "reason": code,
        "refusal": code,
        "retry_at": None,
        "caller_retry_at": None,
        "failures": 0,
    }
    return connection.model_copy(update=changes)


def _failed(connection: ConnectionState, result: GrantResult, code: ErrorCode, at: Moment) -> ConnectionState:
    failures, now, expires_at = connection.failures + 1, at.now, connection.expires_at
    refused, retry_after = result.unknown_error, result.retry_after
    again = retry_at(now, failures, code, retry_after, at.rules, at.share, refused=refused)
    if code is ErrorCode.REFRESH_PENDING and expires_at is not None and now < expires_at:
        # an attempt of unknown outcome may be decided once the token is over: callers wait for that
        again = min(again, expires_at + at.rules.first_backoff)
    changes = {
        "failures": failures,
        "retry_at": again,
        "caller_retry_at": caller_retry_at(now, again, code, retry_after, at.rules, refused=refused),
        "reason": code,
        "refusal": code,
    }
    return connection.model_copy(update=changes)


def on_late_tokens_received(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    return _verify(connection, event.attempt_id) or Transition(connection)


def on_late_verification_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    result = event.result or GrantResult()
    if store_is_revoking(result):
        return start_revoking(connection, Command.REVOKE)
    newer = result.failure is None and (result.generation or 0) > connection.generation
    if connection.state is LifecycleState.ACTIVE and not newer:
        return Transition(connection.model_copy(update={"late_attempt": None}))  # the grant stays as it is
    if result.failure is None and result.generation is not None:
        return install(connection, StateChange.GRANTED, result, at.now)
    return _verify(connection, result.next_late_attempt) or Transition(_late_failed(connection, result, at))


def _verify(connection: ConnectionState, attempt_id: AttemptId | None) -> Transition | None:
    """None when the tokens are of no use to the connection any more."""
    if attempt_id is None:
        return None
    if connection.state is LifecycleState.ACTIVE:  # installed already: the store says which state holds
        changes = {"late_attempt": attempt_id}
    elif connection.state in STATES_WITHOUT_GRANT:
        changes = {**_without_late_tokens(connection), "late_attempt": attempt_id}
    else:
        return None
    return Transition(connection.model_copy(update=changes), Command.VERIFY_LATE_TOKENS)


def _late_failed(connection: ConnectionState, result: GrantResult, at: Moment) -> ConnectionState:
    """Refused tokens are dropped; any other failure says nothing about them, so they are tried later."""
    code = result.failure or ErrorCode.INTERNAL
    refused = FAILURES[code].kind is FailureKind.RECONNECT_NEEDED
    if result.failure is None or result.consent_over or refused:
        return connection.model_copy(update=_without_late_tokens(connection))
    failures = connection.late_failures + 1
    again = retry_at(at.now, failures, code, result.retry_after, at.rules, at.share)
    return connection.model_copy(update={"late_failures": failures, "verify_late_at": again})


def _without_late_tokens(connection: ConnectionState) -> dict[str, object]:
    """First tokens that are waited for are requested again when they would have been."""
    if connection.waiting_consent is not None:
        return NO_LATE_TOKENS
    return {**NO_LATE_TOKENS, "retry_at": None, "failures": 0}
