"""When a connection's workflow looks again without being asked, and what for. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from evergrant_server.core.clock import CLOCK_SKEW, add_time
from evergrant_server.core.connections.connection import LifecycleState, StateChange
from evergrant_server.core.lifecycle.late_tokens import verification_at
from evergrant_server.core.lifecycle.schedule import LifecycleRules, RefreshPolicy, due_at, keep_alive_at
from evergrant_server.core.messages.connection import ConnectionState, GrantResult

_SAME_END = timedelta(hours=1)  # replies round, and clocks differ a little
_LAST_CHANCE = 0.9  # of the refresh token's life: what is waited for longer would outlive it


@dataclass(frozen=True)
class Timer:
    """When the workflow looks again without being asked, and why.

    `days`: to announce that the grant ends in as many days. `mints`: to ask for a first token
    again, where nobody has to consent. `looks`: to look up the accounts. `keeps`: to keep the
    refresh token alive, whoever has leased what.
    """

    at: datetime
    summary: str
    days: int | None = None
    mints: bool = False
    looks: bool = False
    keeps: bool = False


def next_timer(life: ConnectionState, rules: LifecycleRules, share: float = 0.0) -> Timer | None:
    """The next moment that matters by itself; None means only a message can."""
    match life.state:
        case LifecycleState.PENDING_CONSENT:
            return _earlier(_deadline(life, rules), _late_answer(life), _minting(life))
        case LifecycleState.NEEDS_REAUTH:
            return _earlier(_late_answer(life), _minting(life))
        case LifecycleState.REVOKING:
            return Timer(life.retry_at, "tell the provider again") if life.retry_at else None
        case LifecycleState.ACTIVE:
            refresh, announcement = _refresh(life, rules, share), _announcement(life, rules)
            return _earlier(refresh, announcement, _polling(life), _looking(life))
        case _:
            return None


def _deadline(life: ConnectionState, rules: LifecycleRules) -> Timer | None:
    if life.consent_deadline is None:
        return None
    return Timer(life.consent_deadline + rules.consent_grace, "consent deadline")


def _late_answer(life: ConnectionState) -> Timer | None:
    at = verification_at(life)
    return None if at is None else Timer(at, "verify the late answer again")


def refresh_due_at(life: ConnectionState, rules: LifecycleRules, share: float = 0.0) -> datetime | None:
    """When the access token is to be replaced; None when it never expires."""
    if life.expires_at is None or life.obtained_at is None:
        return None
    return due_at(
        life.obtained_at, life.expires_at, rules, share, margin_s=life.margin_s, min_age_s=life.min_age_s
    )


def token_ends_at(life: ConnectionState) -> datetime | None:
    """When the access token ends by the workflow's own clock: also when a clock that is behind dated it."""
    if life.expires_at is None or life.installed_at is None or life.obtained_at is None:
        return life.expires_at
    return max(life.expires_at, add_time(life.installed_at, life.expires_at - life.obtained_at))


def token_has_ended(life: ConnectionState, now: datetime) -> bool:
    """The access token has ended."""
    ends = token_ends_at(life)
    return ends is not None and now >= ends


def no_token_to_protect(life: ConnectionState, now: datetime, rules: LifecycleRules) -> bool:
    """Waiting for an answer that may be lost keeps no token alive: it has ended, it was refused, or
    what it is refreshed from is about to end."""
    if token_has_ended(life, now) or (life.reported is not None and life.reported == life.generation):
        return True
    if not rules.keeps_all_alive or life.obtained_at is None:
        return False
    span = _refreshable_for(life, rules)
    return span is not None and now >= add_time(life.obtained_at, span * _LAST_CHANCE)


def without_future_dates(news: GrantResult, now: datetime, rules: LifecycleRules) -> GrantResult:
    """No grant was obtained after this workflow heard of it: the clock that dated it was ahead."""
    if not rules.own_clock or news.obtained_at is None or news.obtained_at <= now + CLOCK_SKEW:
        return news
    ahead = news.obtained_at - now
    ends = {"expires_at": news.expires_at, "refresh_expires_at": news.refresh_expires_at}
    moved = {name: None if end is None else end - ahead for name, end in ends.items()}
    return news.model_copy(update={"obtained_at": now, **moved})


def earliest_refresh_at(life: ConnectionState) -> datetime | None:
    """Before this the provider is declared to refuse a refresh."""
    moments: list[datetime] = []
    if life.min_age_s is not None and life.obtained_at is not None:
        moments.append(add_time(life.obtained_at, life.min_age_s))
    if life.margin_s is not None and life.expires_at is not None:
        moments.append(life.expires_at - timedelta(seconds=life.margin_s))
    return max(moments, default=None)


def settled_at(life: ConnectionState, rules: LifecycleRules) -> datetime | None:
    """Until then a grant that just came is not due, whatever a clock says of it.

    A worker's clock that is an hour behind brings tokens that look over at once.
    """
    if rules.shortest_interval is None or life.installed_at is None:
        return None
    if life.expires_at is None or life.obtained_at is None:
        return None
    return life.installed_at + min(rules.shortest_interval, (life.expires_at - life.obtained_at) / 4)


def grant_ends_at(life: ConnectionState) -> datetime | None:
    """When the grant ends unless the subject consents again; None when nothing says that it does."""
    if not life.refreshable:
        return life.expires_at
    if life.refresh_extends is False or life.failures:
        return life.refresh_expires_at
    return None  # refreshing keeps it alive


def is_same_end(one: datetime | None, other: datetime | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _SAME_END


def _earlier(*moments: Timer | None) -> Timer | None:
    return min((it for it in moments if it), key=lambda it: it.at, default=None)


def _minting(life: ConnectionState) -> Timer | None:
    """A consent that nobody has to give is looked at again by itself."""
    if life.waiting_consent is None or life.poll_at is not None:
        return _polling(life)
    return Timer(life.retry_at, "ask for the first token again", mints=True) if life.retry_at else None


def _polling(life: ConnectionState) -> Timer | None:
    return Timer(life.poll_at, "ask whether the code was approved", mints=True) if life.poll_at else None


def _looking(life: ConnectionState) -> Timer | None:
    return Timer(life.look_at, "ask which accounts there are", looks=True) if life.look_at else None


def _refresh(life: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    if life.retry_at is not None:
        return Timer(life.retry_at, "try the refresh again")
    if life.interim and life.obtained_at is not None:
        return Timer(life.obtained_at, "exchange the first token for a long-lived one")
    if life.expires_at is None or life.obtained_at is None:
        return None
    if not life.refreshable:
        return Timer(life.expires_at, "access token expires, and can't be refreshed")
    if life.ends_together:
        return _before_the_end(life, rules, share)
    ahead = life.policy == RefreshPolicy.WARM or (life.policy == RefreshPolicy.ADAPTIVE and life.leased)
    at = refresh_due_at(life, rules, share)
    if ahead and at is not None:
        refresh = Timer(max(at, settled_at(life, rules) or at), "refresh due")
        return _earlier(refresh, _keep_alive(life, rules, share)) if rules.keeps_all_alive else refresh
    return _keep_alive(life, rules, share)


def _before_the_end(life: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    """Once the token is over, nothing can be made from it: an outage has half of its life to end.

    Where a refresh doesn't move the end, an earlier one is for nothing.
    """
    kept, last = _keep_alive(life, rules, share), refresh_due_at(life, rules, share)
    if kept is None:
        return None if last is None else Timer(max(last, settled_at(life, rules) or last), "refresh due")
    return Timer(max(kept.at, earliest_refresh_at(life) or kept.at), "refresh long before the token ends")


def _keep_alive(life: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    """Before the refresh token dies of idleness, or of an age that a refresh starts anew."""
    assert life.obtained_at is not None
    span = _refreshable_for(life, rules)
    if span is None:
        return None
    at = keep_alive_at(life.obtained_at, span, rules, share)
    return Timer(max(at, settled_at(life, rules) or at), "keep the refresh token alive", keeps=True)


def _refreshable_for(life: ConnectionState, rules: LifecycleRules) -> float | None:
    """Seconds from when the grant was obtained: until then a refresh keeps its refresh token alive."""
    assert life.obtained_at is not None
    spans = [] if life.idle_s is None else [life.idle_s]
    ages = rules.tracks_refresh_expiry and life.refreshable and life.refresh_extends is not False
    if ages and life.refresh_expires_at is not None:
        left = (life.refresh_expires_at - life.obtained_at).total_seconds()
        spans += [left] if left > 0 else []
    return min(spans, default=None)


def _announcement(life: ConnectionState, rules: LifecycleRules) -> Timer | None:
    """The next announcement: of those that were missed only the last, none from before the grant."""
    end, known = grant_ends_at(life), life.end_known_at or life.obtained_at
    if end is None or known is None:
        return None
    open_ = [d for d in rules.announce_days if d not in life.announced and end - timedelta(days=d) > known]
    if not open_:
        return None
    days = max(open_)
    return Timer(end - timedelta(days=days), "announce that the grant ends", days)


def refresh_extends_end(life: ConnectionState, move: StateChange, news: GrantResult) -> bool | None:
    """Did this refresh move the refresh token's end along with it? None while that isn't known."""
    if move is not StateChange.REFRESHED:
        return None  # another grant: what was seen of the old one says nothing
    before, after = life.refresh_expires_at, news.refresh_expires_at
    if before is None or after is None or life.obtained_at is None or news.obtained_at is None:
        return life.refresh_extends
    passed = news.obtained_at - life.obtained_at
    if passed < timedelta(minutes=1):
        return life.refresh_extends  # too short to tell a moved end from a rounded one
    return after - before > passed / 2
