"""`next_step`: what a connection's workflow does about what happened. Pure.

The workflow asks, executes and comes back with the result as the next happening; it
parses nothing and decides nothing. `revoked` is final, a generation never goes back, and
a wait never hides a revocation: these are the properties its tests look for.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from evergrant_server.core.asking import freshness_asked, rotate_asked, token_requested
from evergrant_server.core.beginning import kept_of
from evergrant_server.core.beginning import life_of as life_of
from evergrant_server.core.choice import after_install, looked_up, wants_token
from evergrant_server.core.connection import Move, State, moved
from evergrant_server.core.elsewhere import ended_elsewhere
from evergrant_server.core.errors import FAILURES, Code, Kind
from evergrant_server.core.first_token import minted, not_minted, polled
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.late import NONE_LATE, not_verified, repaired, to_verify, verify_at
from evergrant_server.core.messages import Event, GrantNews, Happening, Life
from evergrant_server.core.revoking import revoking_goes_on
from evergrant_server.core.schedule import RefreshPolicy, Rules, ask_at, retry_at
from evergrant_server.core.step import Do as Do
from evergrant_server.core.step import Step as Step
from evergrant_server.core.waking import Wake, end_of, extends, not_ahead, same_end, wake

_REMEMBERED_CONSENTS = 20
_ENDS = {Code.CONSENT_DENIED: Move.CONSENT_DENIED, Code.CONSENT_EXPIRED: Move.CONSENT_EXPIRED}


def next_step(life: Life, happening: Happening, now: datetime, rules: Rules, share: float = 0.0) -> Step:
    """Decide. `share` in [0, 1) spreads a fleet; it is an argument so that replay agrees."""
    if life.state.final and happening.event is not Event.CONSENT_STANDS:
        return Step(life.model_copy(update={"refusal": life.reason or Code.CONNECTION_REVOKED}))
    heard = life.model_copy(update={"refusal": None, "declined_s": None})
    if happening.news is not None:
        happening = happening.model_copy(update={"news": not_ahead(happening.news, now, rules)})
    return _DECIDERS[happening.event](heard, happening, now, rules, share)


def ensure_fresh_refusal(life: Life, seen_generation: int) -> Code | None:
    """Why an `ensure_fresh` need not be accepted: the store already answers it."""
    if life.state is State.ACTIVE:
        return Code.STORE_CONFLICT if life.generation > seen_generation else None
    return life.reason or Code.CONSENT_REQUIRED


def _consent_granted(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if it.consent_id is None or it.consent_id in life.recent_consents:
        return Step(life)
    return _exchange(life, it.consent_id)


def _exchange(life: Life, consent: ConsentId) -> Step:
    recent = (*life.recent_consents, consent)[-_REMEMBERED_CONSENTS:]
    life = life.model_copy(update={"recent_consents": recent})
    if life.flow.asks_in_browser:
        return Step(life, Do.EXCHANGE_CODE)
    return Step(life.model_copy(update={"waiting_consent": consent}), _first(life))


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
    return _installed(pending, Move.GRANTED, news, now)


def _code_exchanged(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.failure is not None:
        return Step(life.model_copy(update={"refusal": news.failure}))
    return _installed(life, Move.GRANTED, news, now)


def _first(life: Life) -> Do:
    return Do.POLL if life.flow is Flow.DEVICE_CODE else Do.MINT


def _grant_minted(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.poll is not None:
        return Step(polled(life, news, news.poll, it.consent_id, now))
    if news.failure is None:
        return _installed(minted(life), Move.GRANTED, news, now)
    if news.failure in _ENDS and life.state is State.PENDING_CONSENT:
        ended = _end(minted(life), _ENDS[news.failure], news.failure)
        return Step(ended, Do.END_CONSENT, denied=ended.state is State.DENIED)
    return Step(not_minted(life, news, it.consent_id, now, rules, share))


def _grant_refreshed(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.state is State.REVOKING and news.generation is None:
        return _revoking(life, Do.REVOKE)
    if news.not_leased:
        return Step(life.model_copy(update={"leased": False, "retry_at": None}))
    if news.failure is None:
        return _not_at_once(life, _installed(life, Move.REFRESHED, news, now), now, rules)
    if FAILURES[news.failure].kind is Kind.RECONNECT_NEEDED:
        changes = {
            "state": moved(life.state, Move.REJECTED),
            "reason": news.failure,
            "refusal": news.failure,
            "retry_at": None,
            "ask_at": None,
            "failures": 0,
        }
        return Step(life.model_copy(update=changes))
    failures = life.failures + 1
    again = retry_at(now, failures, news.failure, news.retry_after, rules, share, refused=news.refused)
    if news.failure is Code.REFRESH_PENDING and life.expires_at is not None and now < life.expires_at:
        # what is waited for may be decided once the token is over: callers then wait for us alone
        again = min(again, life.expires_at + rules.first_backoff)
    asked = ask_at(now, again, news.failure, news.retry_after, rules, refused=news.refused)
    changes = {
        "failures": failures,
        "retry_at": again,
        "ask_at": asked,
        "reason": news.failure,
        "refusal": news.failure,
    }
    return Step(life.model_copy(update=changes))


def _revoked_elsewhere(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """The store says so already. A grant that came while the news were under way lives."""
    return Step(ended_elsewhere(life, it.seen_generation or 0))


def _reauthorize_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    return Step(life)  # the consent is in the store; its code comes as consent_granted


def _provider_changed(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    """An admin may have repaired what failed: look again at once."""
    spread = timedelta(0) if life.state is State.REVOKING else rules.repaired_spread
    again = now + spread * share  # a whole fleet hears of it at once, and a revocation waits for nobody
    life = repaired(life, again)
    if not life.failures:
        return Step(life)
    return Step(life.model_copy(update={"retry_at": again, "ask_at": now}))


def _time_came(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    woken = wake(life, rules, share)
    if woken is None or now < woken.at:
        return Step(life)
    if woken.days is not None:
        return _announce(life, now, rules)
    if woken.at == verify_at(life):
        return Step(life, Do.VERIFY_LATE)
    if woken.mints:
        return Step(life, _first(life))
    if woken.looks:
        return Step(life, Do.LOOK_UP)
    if life.state is State.PENDING_CONSENT:
        return Step(_end(life, Move.CONSENT_EXPIRED, Code.CONSENT_EXPIRED), Do.END_CONSENT)
    if life.state is State.REVOKING:
        return Step(life, Do.REVOKE)
    adaptive = life.policy == RefreshPolicy.ADAPTIVE and life.refreshable
    in_any_case = life.interim or life.ends_together or woken.keeps  # nothing could be made of it later
    if adaptive and life.leased and life.failures == 0 and not in_any_case:
        return Step(life, Do.REFRESH_IF_LEASED)
    return Step(life, Do.REFRESH)


def _answer_came_late(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    verifying = to_verify(life, it.attempt_id, rules)
    return Step(life) if verifying is None else Step(verifying, Do.VERIFY_LATE)


def _looked_up(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    after = looked_up(life, it.news or GrantNews(), now, rules, share)
    return Step(after, Do.REFRESH if wants_token(after, now) else Do.NOTHING)


def _choice_made(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    return Step(life.model_copy(update={"choosing": False, "look_at": None}))


def _late_answer_tried(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    news = it.news or GrantNews()
    if news.state is State.REVOKING and news.generation is None:
        return _revoking(life, Do.REVOKE)
    if life.state is State.ACTIVE and (news.failure is not None or (news.generation or 0) <= life.generation):
        return Step(life.model_copy(update={"late": None}))  # what there is stays as it is
    if news.failure is None and news.generation is not None:
        return _installed(life, Move.GRANTED, news, now)
    following = to_verify(life, news.late_next, rules)
    if following is not None:
        return Step(following, Do.VERIFY_LATE)
    return Step(not_verified(life, news, now, rules, share))


def _revoke_asked(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if life.state is State.REVOKING:
        return Step(life)  # the first one is being carried out, and never given up
    return _revoking(life, Do.ASK_REVOCATION, it.reason)


def _revocation_tried(life: Life, it: Happening, now: datetime, rules: Rules, share: float) -> Step:
    if it.revocation is None:  # it is written; now the provider
        return Step(life, Do.REVOKE)
    return Step(revoking_goes_on(life, it.revocation, now, rules, share))


def _announce(life: Life, now: datetime, rules: Rules) -> Step:
    """Say the smallest number that is true; those that were missed are not made up for."""
    end = end_of(life)
    assert end is not None
    come = tuple(d for d in rules.announce_days if end - timedelta(days=d) <= now)
    announced = tuple(sorted({*life.announced, *come}, reverse=True))
    return Step(life.model_copy(update={"announced": announced}), Do.ANNOUNCE, days=min(come))


def _not_at_once(before: Life, step: Step, now: datetime, rules: Rules) -> Step:
    """A refresh that brought nothing newer is not due again at once, whatever the grant says."""
    life = step.life
    if life.state is not State.ACTIVE or life.generation > before.generation:
        return step
    again = max(life.expires_at or now, now + rules.first_backoff)
    return Step(life.model_copy(update={"retry_at": again}), step.do)


def _installed(life: Life, move: Move, news: GrantNews, now: datetime) -> Step:
    state = moved(life.state, move)
    changes = {
        "state": state,
        "generation": max(life.generation, news.generation or 0),
        **kept_of(news),
        "leased": True,
        "failures": 0,
        "retry_at": None,
        "reason": Code.CONNECTION_REVOKED if state is State.REVOKING else None,
        "ask_at": None,
        "installed_at": now,
        "refresh_extends": extends(life, move, news),
        **NONE_LATE,
        **after_install(news, now),
    }
    after = life.model_copy(update=changes)
    if not same_end(end_of(life), end_of(after)):
        after = after.model_copy(update={"end_known_at": news.obtained_at, "announced": ()})
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


_Decider = Callable[[Life, Happening, datetime, Rules, float], Step]

_DECIDERS: dict[Event, _Decider] = {
    Event.CONSENT_GRANTED: _consent_granted,
    Event.CONSENT_DENIED: _consent_denied,
    Event.CODE_EXCHANGED: _code_exchanged,
    Event.GRANT_MINTED: _grant_minted,
    Event.FRESHNESS_ASKED: freshness_asked,
    Event.TOKEN_REQUESTED: token_requested,
    Event.ROTATE_ASKED: rotate_asked,
    Event.REAUTHORIZE_ASKED: _reauthorize_asked,
    Event.TIME_CAME: _time_came,
    Event.GRANT_REFRESHED: _grant_refreshed,
    Event.REVOKE_ASKED: _revoke_asked,
    Event.REVOCATION_TRIED: _revocation_tried,
    Event.PROVIDER_CHANGED: _provider_changed,
    Event.CONSENT_STANDS: _consent_stands,
    Event.REVOKED_ELSEWHERE: _revoked_elsewhere,
    Event.ANSWER_CAME_LATE: _answer_came_late,
    Event.LATE_ANSWER_TRIED: _late_answer_tried,
    Event.LOOKED_UP: _looked_up,
    Event.CHOICE_MADE: _choice_made,
}

__all__ = ["Do", "Step", "Wake", "ensure_fresh_refusal", "life_of", "next_step", "wake"]
