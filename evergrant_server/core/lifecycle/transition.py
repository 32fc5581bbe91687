"""`next_step`: what a connection's workflow does about an event. Pure.

The workflow asks, carries the command out and comes back with the result as the next event; it
parses nothing and decides nothing. `revoked` is final, a generation never goes back, and a timer
never hides a revocation: the properties that the model test checks.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle import confirmations, consents, grants, refresh
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.grants import announced_end, without_future_dates
from evergrant_server.core.lifecycle.schedule import LifecycleRules, RefreshPolicy
from evergrant_server.core.lifecycle.timers import Timer, TimerPurpose, next_timer
from evergrant_server.core.messages.connection import ConnectionState, EventKind, LifecycleEvent


def next_step(
    connection: ConnectionState,
    event: LifecycleEvent,
    now: datetime,
    rules: LifecycleRules,
    share: float = 0.0,
) -> Transition:
    """The next state and command after an event.

    `share` in [0, 1) spreads a fleet's timers; it is an argument so that a replay decides the same.
    """
    if connection.state.is_final and event.kind is not EventKind.CONSENT_NOT_ENDED:
        refusal = connection.reason or ErrorCode.CONNECTION_REVOKED
        return Transition(connection.__replace__(refusal=refusal))
    connection = connection.__replace__(refusal=None, declined_s=None)
    if event.result is not None:
        event = event.__replace__(result=without_future_dates(event.result, now))
    return _HANDLERS[event.kind](connection, event, Moment(now, rules, share))


def _on_timer_fired(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    timer = next_timer(connection, at.rules, at.share)
    if timer is None or at.now < timer.at:
        return Transition(connection)
    match timer.purpose:
        case TimerPurpose.ANNOUNCE_EXPIRY:
            return _announce(connection, at)
        case TimerPurpose.VERIFY_LATE_TOKENS:
            return Transition(connection, Command.VERIFY_LATE_TOKENS)
        case TimerPurpose.REQUEST_FIRST_TOKENS:
            return Transition(connection, consents.request_first_tokens(connection))
        case TimerPurpose.LOOK_UP_ACCOUNTS:
            return Transition(connection, Command.LOOK_UP_ACCOUNTS)
        case TimerPurpose.END_CONSENT:
            return consents.on_consent_expired(connection)
        case TimerPurpose.LAPSE_CONSENT:
            return Transition(connection, Command.LAPSE_CONSENT)
        case TimerPurpose.REVOKE:
            return Transition(connection, Command.REVOKE)
        case TimerPurpose.REFRESH | TimerPurpose.KEEP_ALIVE:
            return Transition(connection, _refresh_command(connection, timer))


def _refresh_command(connection: ConnectionState, timer: Timer) -> Command:
    """The adaptive policy refreshes ahead only what was leased, and what couldn't be refreshed later."""
    adaptive = connection.policy == RefreshPolicy.ADAPTIVE and connection.refreshable
    kept_alive = timer.purpose is TimerPurpose.KEEP_ALIVE
    now_or_never = connection.short_lived or connection.ends_together or kept_alive
    ahead = connection.leased and connection.failures == 0
    return Command.REFRESH_IF_LEASED if adaptive and ahead and not now_or_never else Command.REFRESH


def _announce(connection: ConnectionState, at: Moment) -> Transition:
    """Announce the smallest number of days that is true; missed announcements are not made up for."""
    end = announced_end(connection, at.rules)
    assert end is not None
    reached = tuple(days for days in at.rules.announce_days if end - timedelta(days=days) <= at.now)
    announced = tuple(sorted({*connection.announced_days, *reached}, reverse=True))
    after = connection.__replace__(announced_days=announced)
    return Transition(after, Command.ANNOUNCE_EXPIRY, days_before_end=min(reached), ends_at=end)


def _on_provider_changed(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """An admin may have repaired what failed: try again now; a fleet is spread, a revocation isn't."""
    revoking = connection.state is LifecycleState.REVOKING
    again = at.now if revoking else at.now + at.rules.repaired_spread * at.share
    if connection.verify_late_at is not None:
        connection = connection.__replace__(verify_late_at=again)
    if connection.failures:
        connection = connection.__replace__(retry_at=again, caller_retry_at=at.now, cause=None)
    return Transition(connection)


_HANDLERS: dict[EventKind, Callable[[ConnectionState, LifecycleEvent, Moment], Transition]] = {
    EventKind.CONSENT_GRANTED: consents.on_consent_granted,
    EventKind.CONSENT_DENIED: consents.on_consent_denied,
    EventKind.CONSENT_RETURNED: confirmations.on_consent_returned,
    EventKind.CONSENT_LAPSED: confirmations.on_consent_lapsed,
    EventKind.CONSENT_NOT_ENDED: consents.on_consent_not_ended,
    EventKind.CODE_EXCHANGE_ENDED: consents.on_code_exchange_ended,
    EventKind.FIRST_TOKENS_ENDED: consents.on_first_tokens_ended,
    EventKind.REFRESH_REQUESTED: refresh.on_refresh_requested,
    EventKind.TOKEN_REQUESTED: refresh.on_token_requested,
    EventKind.ROTATION_REQUESTED: refresh.on_rotation_requested,
    EventKind.REFRESH_ENDED: refresh.on_refresh_ended,
    EventKind.TIMER_FIRED: _on_timer_fired,
    EventKind.PROVIDER_CHANGED: _on_provider_changed,
    EventKind.REVOCATION_REQUESTED: grants.on_revocation_requested,
    EventKind.REVOCATION_ENDED: grants.on_revocation_ended,
    EventKind.REVOKED_AT_PROVIDER: grants.on_revoked_at_provider,
    EventKind.LATE_TOKENS_RECEIVED: refresh.on_late_tokens_received,
    EventKind.LATE_VERIFICATION_ENDED: refresh.on_late_verification_ended,
    EventKind.ACCOUNT_LOOKUP_ENDED: consents.on_account_lookup_ended,
    EventKind.ACCOUNT_CHOSEN: consents.on_account_chosen,
}
