"""What requests for a token and ended refreshes lead to: a refresh, a new grant, another try. Pure.

Late tokens are never believed as they are: where rotation is strict, another use may have ended
their family meanwhile. They are kept until their own refresh, the verification, has an answer.
"""

from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind, Repairer
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.grants import (
    install,
    start_revoking,
    store_is_revoking,
    token_ends_at,
    token_has_ended,
    without_failures,
    without_late_tokens,
)
from evergrant_server.core.lifecycle.schedule import (
    caller_retry_at,
    cause_of,
    next_forced_refresh_at,
    retry_at,
)
from evergrant_server.core.lifecycle.timers import (
    STATES_WITHOUT_GRANT,
    earliest_refresh_at,
    refresh_due_at,
    settled_at,
)
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent, RefreshReason


def on_refresh_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    result = event.result or GrantResult()
    if store_is_revoking(result):
        return start_revoking(connection, Command.REVOKE)
    connection = connection.__replace__(postponed_until=None)
    if result.postponed_s is not None:
        return _postponed(connection, timedelta(seconds=result.postponed_s), at.now)
    if result.not_leased:
        return Transition(connection.__replace__(leased=False, retry_at=None))
    if result.unchanged:
        return Transition(connection)
    if result.undecided:
        again = at.now + at.rules.caller_backoff
        return Transition(connection.__replace__(caller_retry_at=again, refusal=connection.reason))
    if result.failure is None:
        return _installed(connection, result, at)
    if result.failure is ErrorCode.STORE_BEHIND and (event.seen_generation or 0) > connection.generation:
        # a caller named a generation that neither this run nor the store knows: only that caller is refused
        return Transition(connection.__replace__(refusal=result.failure))
    if FAILURES[result.failure].kind is FailureKind.RECONNECT_NEEDED:
        return Transition(_rejected(connection, result, result.failure, at))
    return Transition(_failed(connection, result, result.failure, at))


def _postponed(connection: ConnectionState, wait: timedelta, now: datetime) -> Transition:
    """No caller waits for it, and one that comes causes a refresh at once: nothing is wrong."""
    return _declined(
        connection.__replace__(postponed_until=now + wait, retry_at=None, caller_retry_at=None), wait
    )


def _installed(connection: ConnectionState, result: GrantResult, at: Moment) -> Transition:
    """After a refresh without a newer grant, the next one is due later, even if the grant has expired."""
    after = install(connection, StateChange.REFRESHED, result, at.now)
    state = after.state
    if state.state is not LifecycleState.ACTIVE or state.generation > connection.generation:
        return after
    again = max(state.expires_at or at.now, at.now + at.rules.first_backoff)
    return Transition(state.__replace__(retry_at=again), after.command)


def _rejected(
    connection: ConnectionState, result: GrantResult, code: ErrorCode, at: Moment
) -> ConnectionState:
    """A grant that is only probably over is tried once more later, as late tokens are."""
    if result.last_try:
        last_try = at.now + at.rules.last_try
        connection = connection.__replace__(late_attempt=result.attempt_id, verify_late_at=last_try)
    return without_failures(connection).__replace__(
        state=state_after(connection.state, StateChange.REJECTED),
        reason=code,
        refusal=code,
        retry_at=None,
        caller_retry_at=None,
    )


def _failed(connection: ConnectionState, result: GrantResult, code: ErrorCode, at: Moment) -> ConnectionState:
    now, expires_at = at.now, connection.expires_at
    refused, retry_after = result.unknown_error, result.retry_after
    connection = _with_failure(connection, cause_of(code, refused=refused, answer_lost=result.answer_lost))
    tries = connection.tries if at.rules.counts_by_cause else connection.failures
    again = retry_at(now, tries, code, retry_after, at.rules, at.share, refused=refused)
    if code is ErrorCode.REFRESH_PENDING and expires_at is not None and now < expires_at:
        # an attempt of unknown outcome may be decided once the token is over: callers wait for that
        again = min(again, expires_at + at.rules.first_backoff)
    return connection.__replace__(
        retry_at=again,
        caller_retry_at=caller_retry_at(now, again, code, retry_after, at.rules, refused=refused),
        reason=code,
        refusal=code,
        why_unsent=result.why_unsent,
    )


def _with_failure(connection: ConnectionState, cause: FailureCause) -> ConnectionState:
    """The connection with one more failed refresh. A new cause begins its count anew; an outage goes on
    counting, so that a provider that answers now and then isn't asked as if it had just failed."""
    outages = connection.outages + (cause is FailureCause.OUTAGE)
    tries = connection.tries + 1 if cause is connection.cause else 1
    if cause is FailureCause.OUTAGE:
        tries = outages
    return connection.__replace__(failures=connection.failures + 1, cause=cause, tries=tries, outages=outages)


def on_late_tokens_received(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    return _verify(connection, event.attempt_id) or Transition(connection)


def on_late_verification_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    result = event.result or GrantResult()
    if store_is_revoking(result):
        return start_revoking(connection, Command.REVOKE)
    newer = result.failure is None and (result.generation or 0) > connection.generation
    if connection.state is LifecycleState.ACTIVE and not newer:
        return Transition(connection.__replace__(late_attempt=None))  # the grant stays as it is
    if result.failure is None and result.generation is not None:
        return install(connection, StateChange.GRANTED, result, at.now)
    return _verify(connection, result.next_late_attempt) or Transition(_late_failed(connection, result, at))


def _verify(connection: ConnectionState, attempt_id: AttemptId | None) -> Transition | None:
    """None when the tokens are of no use to the connection any more."""
    if attempt_id is None:
        return None
    if connection.state is LifecycleState.ACTIVE:  # installed already: the store says which state holds
        after = connection
    elif connection.state in STATES_WITHOUT_GRANT:
        after = _dropped_late_tokens(connection)
    else:
        return None
    return Transition(after.__replace__(late_attempt=attempt_id), Command.VERIFY_LATE_TOKENS)


def _late_failed(connection: ConnectionState, result: GrantResult, at: Moment) -> ConnectionState:
    """Refused tokens are dropped; any other failure says nothing about them, so they are tried later."""
    code = result.failure or ErrorCode.INTERNAL
    refused = FAILURES[code].kind is FailureKind.RECONNECT_NEEDED
    if result.failure is None or result.consent_over or refused:
        return _dropped_late_tokens(connection)
    failures = connection.late_failures + 1
    again = retry_at(at.now, failures, code, result.retry_after, at.rules, at.share)
    return connection.__replace__(late_failures=failures, verify_late_at=again)


def _dropped_late_tokens(connection: ConnectionState) -> ConnectionState:
    """First tokens that are waited for are requested again when they would have been."""
    if connection.waiting_consent is not None:
        return without_late_tokens(connection)
    return without_failures(without_late_tokens(connection)).__replace__(retry_at=None)


_REPAIRERS = (Repairer.INTEGRATION_ADMIN, Repairer.OPERATOR, Repairer.PERMIT_ADMIN)
_MOST_WAITING_CALLERS = 100  # the answer to a later one says that no further answer follows


def ensure_fresh_refusal(connection: ConnectionState, seen_generation: int) -> ErrorCode | None:
    """Why an `ensure_fresh` need not be accepted: the store already answers it."""
    if connection.state is LifecycleState.ACTIVE:
        return ErrorCode.STORE_CONFLICT if connection.generation > seen_generation else None
    return connection.reason or ErrorCode.CONSENT_REQUIRED


def on_refresh_requested(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A caller asks for a newer generation than the one it has."""
    seen = event.seen_generation if event.seen_generation is not None else connection.generation
    if connection.state is LifecycleState.ACTIVE and connection.generation > seen:
        return Transition(connection)
    later = connection.postponed_until
    if event.ahead and later is not None and at.now < later:
        return _declined(connection, later - at.now)
    if event.refresh_reason is RefreshReason.UNAUTHORIZED and not token_has_ended(connection, at.now):
        return _forced(connection, seen, at)
    settled, since = settled_at(connection, at.rules), connection.installed_at
    settles = settled is not None and since is not None and since <= at.now < settled
    if event.refresh_reason is RefreshReason.DUE and settles and settled is not None:
        return _declined(connection, settled - at.now)
    if event.repaired and at.rules.tries_repairs and _waits_for_repair(connection):
        connection = connection.__replace__(retry_at=None, caller_retry_at=None)
    return _refresh_now(connection, at.now)


def _waits_for_repair(connection: ConnectionState) -> bool:
    """True when a person has to repair what the last refresh met."""
    reason = connection.reason if connection.failures else None
    return reason is not None and FAILURES[reason].repairer in _REPAIRERS


def on_token_requested(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A workflow requests a valid token; if a person has to act first, it is signalled again afterwards."""
    due = refresh_due_at(connection, at.rules)
    if connection.state is LifecycleState.ACTIVE and (due is None or at.now < due):
        return Transition(connection)
    after = _refresh_now(connection, at.now)
    return Transition(with_waiting_caller(after.state, event.reply_to), after.command)


def on_rotation_requested(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """Replace the token, however good it is; requests about the same generation share one refresh."""
    if event.seen_generation is not None and connection.generation > event.seen_generation:
        return Transition(connection)
    return _refresh_now(connection, at.now)


def with_waiting_caller(connection: ConnectionState, reply_to: str | None) -> ConnectionState:
    """Remember a workflow that gets a second answer once a person has acted."""
    waits = connection.state in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
    if reply_to is None or not (waits or connection.choice_pending):
        return connection
    callers = tuple(dict.fromkeys((*connection.waiting_callers, reply_to)))
    return connection.__replace__(waiting_callers=callers[:_MOST_WAITING_CALLERS])


def callers_can_be_told(connection: ConnectionState) -> bool:
    """There is a token now, or there never will be."""
    usable = connection.state is LifecycleState.ACTIVE and not connection.choice_pending
    return usable or connection.state.is_final


def _forced(connection: ConnectionState, seen: int, at: Moment) -> Transition:
    """A token was refused that should be valid. Once it is replaced, a second refusal proves little."""
    last, now = connection.last_forced_at, at.now
    times = 0 if last is None or now - last >= at.rules.forced_forgotten else connection.forced_refreshes
    if times and last is not None:
        until = next_forced_refresh_at(last, times, at.rules)
        if now < until:
            ends = token_ends_at(connection)
            return _declined(connection, (until if ends is None else min(until, ends)) - now)
    after = _refresh_now(connection, now)
    state = after.state.__replace__(reported_generation=seen)  # also for the next try that comes by itself
    if after.command is Command.REFRESH:
        state = state.__replace__(forced_refreshes=times + 1, last_forced_at=now)
    return Transition(state, after.command)


def _declined(connection: ConnectionState, wait: timedelta) -> Transition:
    return Transition(connection.__replace__(declined_s=wait.total_seconds()))


def _refresh_now(connection: ConnectionState, now: datetime) -> Transition:
    """Refresh for a caller, unless that is known to fail."""
    if connection.state is not LifecycleState.ACTIVE:
        refusal = connection.reason or ErrorCode.CONSENT_REQUIRED
        return Transition(connection.__replace__(refusal=refusal))
    if connection.expires_at is None and not connection.refreshable:
        return Transition(connection)
    again = connection.caller_retry_at or connection.retry_at
    if again is not None and now < again:  # an outage costs no call for each caller
        return Transition(connection.__replace__(refusal=connection.reason))
    allowed = earliest_refresh_at(connection)
    if allowed is not None and now < allowed:
        return _declined(connection, allowed - now)
    return Transition(connection, Command.REFRESH)
