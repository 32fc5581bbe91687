"""Somebody asks for a token: what is refreshed for it, what is declined, and what is known to fail. Pure."""

from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.schedule import LifecycleRules, next_forced_refresh_at
from evergrant_server.core.lifecycle.timers import (
    earliest_refresh_at,
    refresh_due_at,
    settled_at,
    token_ends_at,
    token_has_ended,
)
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent, RefreshReason

_MOST_WAITING_CALLERS = 100  # one that comes later hears that nothing follows, and asks again itself


def on_refresh_requested(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """A caller holds a generation, and says why it isn't good enough."""
    seen = it.seen_generation if it.seen_generation is not None else life.generation
    if life.state is LifecycleState.ACTIVE and life.generation > seen:
        return Transition(life)
    if it.refresh_reason is RefreshReason.UNAUTHORIZED:
        over = rules.own_clock and token_has_ended(life, now)
        return _refresh_now(life, now) if over else _forced(life, seen, now, rules)
    settles = settled_at(life, rules)
    since = life.installed_at
    if (
        it.refresh_reason is RefreshReason.DUE
        and settles is not None
        and since is not None
        and since <= now < settles
    ):
        return _declined(life, settles - now)
    return _refresh_now(life, now)


def _forced(life: ConnectionState, seen: int, now: datetime, rules: LifecycleRules) -> Transition:
    """A token was refused that should be good. Once it's replaced, a second refusal proves nothing."""
    forgotten = life.forced_at is None or now - life.forced_at >= rules.forced_forgotten
    times = 0 if forgotten else life.forced
    if times and life.forced_at is not None:
        until = next_forced_refresh_at(life.forced_at, times, rules)
        if now < until:
            # once the token is over it is no riddle any more: nobody is sent away for longer
            ends = token_ends_at(life) if rules.own_clock else None
            return _declined(life, (until if ends is None else min(until, ends)) - now)
    step = _refresh_now(life, now)
    known = {"reported": seen} if rules.heeds_reports else {}
    if step.command is not Command.REFRESH:
        return Transition(step.state.model_copy(update=known))  # the try that comes by itself has to know
    return Transition(
        step.state.model_copy(update={"forced": times + 1, "forced_at": now, **known}), step.command
    )


def _declined(life: ConnectionState, wait: timedelta) -> Transition:
    return Transition(life.model_copy(update={"declined_s": wait.total_seconds()}))


def on_token_requested(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """A workflow wants a token that lasts; told to wait for a person, it hears again afterwards."""
    if life.state is LifecycleState.ACTIVE and not _is_due(life, now, rules):
        return Transition(life)
    step = _refresh_now(life, now)
    return Transition(_tell_later(step.state, it.reply_to, rules), step.command)


def with_waiting_caller(
    life: ConnectionState, reply_to: str | None, rules: LifecycleRules
) -> ConnectionState:
    """Who asked for a token hears again also when it was his own request that found the grant dead, or
    when an account has to be chosen first."""
    return _tell_later(life, reply_to, rules) if rules.once_for_all else life


def callers_can_be_told(life: ConnectionState, rules: LifecycleRules) -> bool:
    """There is a token now, or there never will be."""
    return (
        life.state is LifecycleState.ACTIVE and not (rules.once_for_all and life.choosing)
    ) or life.state.is_final


def _tell_later(life: ConnectionState, reply_to: str | None, rules: LifecycleRules) -> ConnectionState:
    waits = life.state in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
    if not (waits or (rules.once_for_all and life.choosing)) or reply_to is None or not rules.answers_again:
        return life
    later = tuple(dict.fromkeys((*life.reply_later, reply_to)))
    kept = slice(_MOST_WAITING_CALLERS) if rules.first_come else slice(-_MOST_WAITING_CALLERS, None)
    return life.model_copy(update={"reply_later": later[kept]})


def on_rotation_requested(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """Somebody wants a newer token, whatever this one is worth: the many who want it share one refresh."""
    if rules.once_for_all and it.seen_generation is not None and life.generation > it.seen_generation:
        return Transition(life)
    return _refresh_now(life, now)


def _refresh_now(life: ConnectionState, now: datetime) -> Transition:
    """Refresh because somebody asks, unless that is known to fail."""
    if life.state is not LifecycleState.ACTIVE:
        return Transition(life.model_copy(update={"refusal": life.reason or ErrorCode.CONSENT_REQUIRED}))
    if life.expires_at is None and not life.refreshable:
        return Transition(life)
    again = life.ask_at or life.retry_at
    if again is not None and now < again:
        return Transition(
            life.model_copy(update={"refusal": life.reason})
        )  # an outage costs no call per caller
    allowed = earliest_refresh_at(life)
    if allowed is not None and now < allowed:
        return _declined(life, allowed - now)
    return Transition(life, Command.REFRESH)


def _is_due(life: ConnectionState, now: datetime, rules: LifecycleRules) -> bool:
    at = refresh_due_at(life, rules)
    return at is not None and now >= at
