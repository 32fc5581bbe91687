"""Somebody asks for a token: what is refreshed for it, what is declined, and what is known to fail. Pure."""

from datetime import datetime, timedelta

from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.messages import Happening, Life, Wish
from evergrant_server.core.schedule import Rules, forced_at
from evergrant_server.core.step import Do, Step
from evergrant_server.core.waking import due, earliest, is_over, over_at, settles_at

_MOST_REPLIES_LATER = 100  # one that comes later hears that nothing follows, and asks again itself


def freshness_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """A caller holds a generation, and says why it isn't good enough."""
    seen = it.seen_generation if it.seen_generation is not None else life.generation
    if life.state is State.ACTIVE and life.generation > seen:
        return Step(life)
    if it.wish is Wish.UNAUTHORIZED:
        over = rules.own_clock and is_over(life, now)
        return _refresh_now(life, now) if over else _forced(life, seen, now, rules)
    settles = settles_at(life, rules)
    since = life.installed_at
    if it.wish is Wish.DUE and settles is not None and since is not None and since <= now < settles:
        return _declined(life, settles - now)
    return _refresh_now(life, now)


def _forced(life: Life, seen: int, now: datetime, rules: Rules) -> Step:
    """A token was refused that should be good. Once it's replaced, a second refusal proves nothing."""
    forgotten = life.forced_at is None or now - life.forced_at >= rules.forced_forgotten
    times = 0 if forgotten else life.forced
    if times and life.forced_at is not None:
        until = forced_at(life.forced_at, times, rules)
        if now < until:
            # once the token is over it is no riddle any more: nobody is sent away for longer
            ends = over_at(life) if rules.own_clock else None
            return _declined(life, (until if ends is None else min(until, ends)) - now)
    step = _refresh_now(life, now)
    known = {"reported": seen} if rules.heeds_reports else {}
    if step.do is not Do.REFRESH:
        return Step(step.life.model_copy(update=known))  # the try that comes by itself has to know
    return Step(step.life.model_copy(update={"forced": times + 1, "forced_at": now, **known}), step.do)


def _declined(life: Life, wait: timedelta) -> Step:
    return Step(life.model_copy(update={"declined_s": wait.total_seconds()}))


def token_requested(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """A workflow wants a token that lasts; told to wait for a person, it hears again afterwards."""
    if life.state is State.ACTIVE and not _is_due(life, now, rules):
        return Step(life)
    step = _refresh_now(life, now)
    return Step(_to_hear_again(step.life, it.reply_to, rules), step.do)


def waiting(life: Life, reply_to: str | None, rules: Rules) -> Life:
    """Who asked for a token hears again also when it was his own request that found the grant dead, or
    when an account has to be chosen first."""
    return _to_hear_again(life, reply_to, rules) if rules.once_for_all else life


def no_longer_waiting(life: Life, rules: Rules) -> bool:
    """There is a token now, or there never will be."""
    return (life.state is State.ACTIVE and not (rules.once_for_all and life.choosing)) or life.state.final


def _to_hear_again(life: Life, reply_to: str | None, rules: Rules) -> Life:
    waits = life.state in (State.PENDING_CONSENT, State.NEEDS_REAUTH)
    if not (waits or (rules.once_for_all and life.choosing)) or reply_to is None or not rules.answers_again:
        return life
    later = tuple(dict.fromkeys((*life.reply_later, reply_to)))
    kept = slice(_MOST_REPLIES_LATER) if rules.first_come else slice(-_MOST_REPLIES_LATER, None)
    return life.model_copy(update={"reply_later": later[kept]})


def rotate_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """Somebody wants a newer token, whatever this one is worth: the many who want it share one refresh."""
    if rules.once_for_all and it.seen_generation is not None and life.generation > it.seen_generation:
        return Step(life)
    return _refresh_now(life, now)


def _refresh_now(life: Life, now: datetime) -> Step:
    """Refresh because somebody asks, unless that is known to fail."""
    if life.state is not State.ACTIVE:
        return Step(life.model_copy(update={"refusal": life.reason or Code.CONSENT_REQUIRED}))
    if life.expires_at is None and not life.refreshable:
        return Step(life)
    again = life.ask_at or life.retry_at
    if again is not None and now < again:
        return Step(life.model_copy(update={"refusal": life.reason}))  # an outage costs no call per caller
    allowed = earliest(life)
    if allowed is not None and now < allowed:
        return _declined(life, allowed - now)
    return Step(life, Do.REFRESH)


def _is_due(life: Life, now: datetime, rules: Rules) -> bool:
    at = due(life, rules)
    return at is not None and now >= at
