"""`next_step`: what a connection's workflow does about what happened. Pure.

The workflow asks, executes and comes back with the result as the next happening; it
parses nothing and decides nothing. `revoked` is final, a generation never goes back, and
a wait never hides a revocation: these are the properties its tests look for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connection import Connection, Move, State, moved
from evergrant_server.core.errors import FAILURES, Code, Kind
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.messages import Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import (
    RefreshPolicy,
    Rules,
    due_at,
    keep_alive_at,
    retry_at,
)

_REMEMBERED_CONSENTS = 20


class Do(StrEnum):
    """What the workflow is told to do next."""

    NOTHING = "nothing"
    EXCHANGE_CODE = "exchange code"
    REFRESH = "refresh"
    REFRESH_IF_LEASED = "refresh if leased"
    END_CONSENT = "end consent"
    ASK_REVOCATION = "write revocation"
    REVOKE = "revoke at the provider"


@dataclass(frozen=True)
class Step:
    """The life after what happened, and what to do now."""

    life: Life
    do: Do = Do.NOTHING
    denied: bool = False  # with END_CONSENT: said no, instead of ran out


@dataclass(frozen=True)
class Wake:
    """When the workflow looks again without being asked, and why."""

    at: datetime
    why: str


def next_step(life: Life, happening: Happening, now: datetime, rules: Rules, share: float = 0.0) -> Step:
    """Decide. `share` in [0, 1) spreads a fleet; it is an argument so that replay agrees."""
    if life.state.final and happening.event is not Event.CONSENT_STANDS:
        return Step(life.model_copy(update={"refusal": life.reason or Code.CONNECTION_REVOKED}))
    return _DECIDERS[happening.event](life.model_copy(update={"refusal": None}), happening, now, rules, share)


def wake(life: Life, rules: Rules, share: float = 0.0) -> Wake | None:
    """The next moment that matters by itself; None means only a message can."""
    match life.state:
        case State.PENDING_CONSENT:
            if life.consent_deadline is None:
                return None
            return Wake(life.consent_deadline + rules.consent_grace, "consent deadline")
        case State.REVOKING:
            return Wake(life.retry_at, "tell the provider again") if life.retry_at else None
        case State.ACTIVE:
            return _wake_active(life, rules, share)
        case _:
            return None


def life_of(connection: Connection, grant: Grant | None, idle_s: float | None, now: datetime) -> Life:
    """The life of a connection as the store tells it: a new workflow goes on from here."""
    life = Life(
        state=connection.state,
        generation=connection.generation,
        policy=connection.refresh_policy,
        consent_deadline=connection.consent_deadline,
        reason=connection.reason,
        revoke_reason=connection.revoke_reason,
        retry_at=now if connection.state is State.REVOKING else None,
    )
    if grant is None:
        return life
    return life.model_copy(
        update={
            "obtained_at": grant.obtained_at,
            "expires_at": grant.expires_at,
            "refreshable": grant.refreshable,
            "idle_s": idle_s,
        }
    )


def ensure_fresh_refusal(life: Life, seen_generation: int) -> Code | None:
    """Why an `ensure_fresh` need not be accepted: the store already answers it."""
    if life.state is State.ACTIVE:
        return Code.STORE_CONFLICT if life.generation > seen_generation else None
    return life.reason or Code.CONSENT_REQUIRED


def _wake_active(life: Life, rules: Rules, share: float) -> Wake | None:
    if life.retry_at is not None:
        return Wake(life.retry_at, "try the refresh again")
    if life.expires_at is None or life.obtained_at is None:
        return None
    if not life.refreshable:
        return Wake(life.expires_at, "access token expires, and can't be refreshed")
    ahead = life.policy == RefreshPolicy.WARM or (life.policy == RefreshPolicy.ADAPTIVE and life.leased)
    if ahead:
        return Wake(due_at(life.obtained_at, life.expires_at, rules, share), "refresh due")
    if life.idle_s is None:
        return None
    return Wake(keep_alive_at(life.obtained_at, life.idle_s, rules, share), "keep the refresh token alive")


def _consent_granted(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if it.consent_id is None or it.consent_id in life.recent_consents:
        return Step(life)
    return _exchange(life, it.consent_id)


def _exchange(life: Life, consent: ConsentId) -> Step:
    recent = (*life.recent_consents, consent)[-_REMEMBERED_CONSENTS:]
    return Step(life.model_copy(update={"recent_consents": recent}), Do.EXCHANGE_CODE)


def _consent_denied(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if life.state is not State.PENDING_CONSENT:
        return Step(life)  # a reconnect was declined: what there was before stays
    return Step(_end(life, Move.CONSENT_DENIED, Code.CONSENT_DENIED), Do.END_CONSENT, denied=True)


def _consent_stands(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """The end of the consent could not be written: the store says revoking, granted, or a code waits."""
    news = it.news
    if news is None or life.state not in (State.CONSENT_EXPIRED, State.DENIED):
        return Step(life)
    pending = life.model_copy(update={"state": State.PENDING_CONSENT, "reason": None})
    if news.state is State.REVOKING:
        return _revoking(pending, Do.REVOKE)
    if news.consent_id is not None:
        return _exchange(pending, news.consent_id)
    return _installed(pending, Move.GRANTED, news)


def _code_exchanged(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.failure is not None:
        return Step(life.model_copy(update={"refusal": news.failure}))
    return _installed(life, Move.GRANTED, news)


def _grant_refreshed(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.state is State.REVOKING and news.generation is None:
        return _revoking(life, Do.REVOKE)
    if news.not_leased:
        return Step(life.model_copy(update={"leased": False, "retry_at": None}))
    if news.failure is None:
        return _not_at_once(life, _installed(life, Move.REFRESHED, news), now, rules)
    if FAILURES[news.failure].kind is Kind.RECONNECT_NEEDED:
        changes = {
            "state": moved(life.state, Move.REJECTED),
            "reason": news.failure,
            "refusal": news.failure,
            "retry_at": None,
            "failures": 0,
        }
        return Step(life.model_copy(update=changes))
    failures = life.failures + 1
    again = retry_at(now, failures, news.failure, news.retry_after, rules, share)
    if news.failure is Code.REFRESH_PENDING and life.expires_at is not None and now < life.expires_at:
        # what is waited for may be decided once the token is over: callers then wait for us alone
        again = min(again, life.expires_at + rules.first_backoff)
    changes = {"failures": failures, "retry_at": again, "reason": news.failure, "refusal": news.failure}
    return Step(life.model_copy(update=changes))


def _freshness_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    seen = it.seen_generation if it.seen_generation is not None else life.generation
    if life.state is State.ACTIVE and life.generation > seen:
        return Step(life)
    return _refresh_now(life, now)


def _token_requested(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if life.state is State.ACTIVE and not _is_due(life, now, rules):
        return Step(life)
    return _refresh_now(life, now)


def _rotate_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    return _refresh_now(life, now)


def _reauthorize_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    return Step(life)  # the consent is in the store; its code comes as consent_granted


def _provider_changed(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """An admin may have repaired what failed: look again at once."""
    return Step(life.model_copy(update={"retry_at": now if life.failures else life.retry_at}))


def _time_came(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    due = wake(life, rules, share)
    if due is None or now < due.at:
        return Step(life)
    if life.state is State.PENDING_CONSENT:
        return Step(_end(life, Move.CONSENT_EXPIRED, Code.CONSENT_EXPIRED), Do.END_CONSENT)
    if life.state is State.REVOKING:
        return Step(life, Do.REVOKE)
    adaptive = life.policy == RefreshPolicy.ADAPTIVE and life.refreshable
    if adaptive and life.leased and life.failures == 0:
        return Step(life, Do.REFRESH_IF_LEASED)
    return Step(life, Do.REFRESH)


def _revoke_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if life.state is State.REVOKING:
        return Step(life)  # the first one is being carried out, and never given up
    return _revoking(life, Do.ASK_REVOCATION, it.reason)


def _revocation_tried(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.revocation
    if news is None:  # it is written; now the provider
        return Step(life, Do.REVOKE)
    if news.revocation is not None:
        changes = {
            "state": moved(life.state, Move.REVOCATION_ENDED),
            "revocation": news.revocation,
            "retry_at": None,
        }
        return Step(life.model_copy(update=changes))
    failures = life.failures + 1
    capped = rules.model_copy(update={"longest_backoff": rules.longest_revocation_backoff})
    again = retry_at(now, failures, news.failure or Code.INTERNAL, news.retry_after, capped, share)
    return Step(life.model_copy(update={"failures": failures, "retry_at": again}))


def _refresh_now(life: Life, now: datetime) -> Step:
    """Refresh because somebody asks, unless that is known to fail."""
    if life.state is not State.ACTIVE:
        return Step(life.model_copy(update={"refusal": life.reason or Code.CONSENT_REQUIRED}))
    if life.expires_at is None and not life.refreshable:
        return Step(life)
    if life.retry_at is not None and now < life.retry_at:
        return Step(life.model_copy(update={"refusal": life.reason}))  # an outage costs no call per caller
    return Step(life, Do.REFRESH)


def _not_at_once(before: Life, step: Step, now: datetime, rules: Rules) -> Step:
    """A refresh that brought nothing newer is not due again at once, whatever the grant says."""
    life = step.life
    if life.state is not State.ACTIVE or life.generation > before.generation:
        return step
    again = max(life.expires_at or now, now + rules.first_backoff)
    return Step(life.model_copy(update={"retry_at": again}), step.do)


def _installed(life: Life, move: Move, news: GrantNews) -> Step:
    state = moved(life.state, move)
    changes = {
        "state": state,
        "generation": max(life.generation, news.generation or 0),
        "obtained_at": news.obtained_at,
        "expires_at": news.expires_at,
        "refreshable": news.refreshable,
        "idle_s": news.idle_s,
        "leased": True,
        "failures": 0,
        "retry_at": None,
        "reason": Code.CONNECTION_REVOKED if state is State.REVOKING else None,
    }
    after = life.model_copy(update=changes)
    if news.state is State.REVOKING or state is State.REVOKING:
        return _revoking(after, Do.REVOKE)
    return Step(after)


def _revoking(life: Life, do: Do, reason: str | None = None) -> Step:
    changes = {
        "state": moved(life.state, Move.REVOKE_ASKED),
        "reason": Code.CONNECTION_REVOKED,
        "revoke_reason": life.revoke_reason or reason,
        "failures": 0,
        "retry_at": None,
    }
    return Step(life.model_copy(update=changes), do)


def _end(life: Life, move: Move, reason: Code) -> Life:
    return life.model_copy(update={"state": moved(life.state, move), "reason": reason})


def _is_due(life: Life, now: datetime, rules: Rules) -> bool:
    if life.expires_at is None or life.obtained_at is None:
        return False
    return now >= due_at(life.obtained_at, life.expires_at, rules, 0.0)


_Decider = Callable[[Life, Happening, datetime, Rules, float], Step]

_DECIDERS: dict[Event, _Decider] = {
    Event.CONSENT_GRANTED: _consent_granted,
    Event.CONSENT_DENIED: _consent_denied,
    Event.CODE_EXCHANGED: _code_exchanged,
    Event.FRESHNESS_ASKED: _freshness_asked,
    Event.TOKEN_REQUESTED: _token_requested,
    Event.ROTATE_ASKED: _rotate_asked,
    Event.REAUTHORIZE_ASKED: _reauthorize_asked,
    Event.TIME_CAME: _time_came,
    Event.GRANT_REFRESHED: _grant_refreshed,
    Event.REVOKE_ASKED: _revoke_asked,
    Event.REVOCATION_TRIED: _revocation_tried,
    Event.PROVIDER_CHANGED: _provider_changed,
    Event.CONSENT_STANDS: _consent_stands,
}
