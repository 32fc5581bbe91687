"""What a request for a token leads to: a refresh, a refusal, or a later answer. Pure."""

from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.grant_install import token_ends_at, token_has_ended
from evergrant_server.core.lifecycle.schedule import next_forced_refresh_at
from evergrant_server.core.lifecycle.timers import earliest_refresh_at, refresh_due_at, settled_at
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent, RefreshReason

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
    if event.refresh_reason is RefreshReason.UNAUTHORIZED and not token_has_ended(connection, at.now):
        return _forced(connection, seen, at)
    settled, since = settled_at(connection, at.rules), connection.installed_at
    settles = settled is not None and since is not None and since <= at.now < settled
    if event.refresh_reason is RefreshReason.DUE and settles and settled is not None:
        return _declined(connection, settled - at.now)
    return _refresh_now(connection, at.now)


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
    return connection.model_copy(update={"waiting_callers": callers[:_MOST_WAITING_CALLERS]})


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
    changes: dict[str, object] = {"reported_generation": seen}  # also for the next try that comes by itself
    if after.command is Command.REFRESH:
        changes |= {"forced_refreshes": times + 1, "last_forced_at": now}
    return Transition(after.state.model_copy(update=changes), after.command)


def _declined(connection: ConnectionState, wait: timedelta) -> Transition:
    return Transition(connection.model_copy(update={"declined_s": wait.total_seconds()}))


def _refresh_now(connection: ConnectionState, now: datetime) -> Transition:
    """Refresh for a caller, unless that is known to fail."""
    if connection.state is not LifecycleState.ACTIVE:
        refusal = connection.reason or ErrorCode.CONSENT_REQUIRED
        return Transition(connection.model_copy(update={"refusal": refusal}))
    if connection.expires_at is None and not connection.refreshable:
        return Transition(connection)
    again = connection.caller_retry_at or connection.retry_at
    if again is not None and now < again:  # an outage costs no call for each caller
        return Transition(connection.model_copy(update={"refusal": connection.reason}))
    allowed = earliest_refresh_at(connection)
    if allowed is not None and now < allowed:
        return _declined(connection, allowed - now)
    return Transition(connection, Command.REFRESH)
