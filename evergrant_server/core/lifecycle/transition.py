"""`next_step`: what a connection's workflow does about what happened. Pure.

The workflow asks, executes and comes back with the result as the next happening; it
parses nothing and decides nothing. `revoked` is final, a generation never goes back, and
a wait never hides a revocation: these are the properties its tests look for.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.account_choice import (
    after_account_lookup,
    lookup_after_install,
    lookup_needs_refresh,
)
from evergrant_server.core.lifecycle.command import Command as Command
from evergrant_server.core.lifecycle.command import Transition as Transition
from evergrant_server.core.lifecycle.first_token import (
    after_device_poll,
    first_token_failed,
    first_token_received,
)
from evergrant_server.core.lifecycle.late_tokens import (
    NO_LATE_TOKENS,
    after_failed_verification,
    verification_at,
    verifying_late_tokens,
    with_verification_at,
)
from evergrant_server.core.lifecycle.revocation import after_revocation
from evergrant_server.core.lifecycle.schedule import LifecycleRules, RefreshPolicy, caller_retry_at, retry_at
from evergrant_server.core.lifecycle.snapshot import grant_facts_of
from evergrant_server.core.lifecycle.snapshot import state_from_store as state_from_store
from evergrant_server.core.lifecycle.timers import (
    Timer,
    grant_ends_at,
    is_same_end,
    next_timer,
    refresh_extends_end,
    without_future_dates,
)
from evergrant_server.core.lifecycle.token_requests import (
    on_refresh_requested,
    on_rotation_requested,
    on_token_requested,
)
from evergrant_server.core.messages.connection import ConnectionState, EventKind, GrantResult, LifecycleEvent
from evergrant_server.core.provider_events.external_revocation import after_external_revocation

_REMEMBERED_CONSENTS = 20
_ENDS = {
    ErrorCode.CONSENT_DENIED: StateChange.CONSENT_DENIED,
    ErrorCode.CONSENT_EXPIRED: StateChange.CONSENT_EXPIRED,
}


def next_step(
    life: ConnectionState, happening: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float = 0.0
) -> Transition:
    """Decide. `share` in [0, 1) spreads a fleet; it is an argument so that replay agrees."""
    if life.state.is_final and happening.kind is not EventKind.CONSENT_NOT_ENDED:
        return Transition(life.model_copy(update={"refusal": life.reason or ErrorCode.CONNECTION_REVOKED}))
    heard = life.model_copy(update={"refusal": None, "declined_s": None})
    if happening.result is not None:
        happening = happening.model_copy(
            update={"result": without_future_dates(happening.result, now, rules)}
        )
    return _DECIDERS[happening.kind](heard, happening, now, rules, share)


def ensure_fresh_refusal(life: ConnectionState, seen_generation: int) -> ErrorCode | None:
    """Why an `ensure_fresh` need not be accepted: the store already answers it."""
    if life.state is LifecycleState.ACTIVE:
        return ErrorCode.STORE_CONFLICT if life.generation > seen_generation else None
    return life.reason or ErrorCode.CONSENT_REQUIRED


def _consent_granted(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    if it.consent_id is None or it.consent_id in life.recent_consents:
        return Transition(life)
    return _exchange(life, it.consent_id)


def _exchange(life: ConnectionState, consent: ConsentId) -> Transition:
    recent = (*life.recent_consents, consent)[-_REMEMBERED_CONSENTS:]
    life = life.model_copy(update={"recent_consents": recent})
    if life.flow.uses_browser:
        return Transition(life, Command.EXCHANGE_CODE)
    return Transition(life.model_copy(update={"waiting_consent": consent}), _first(life))


def _consent_denied(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    if life.state is not LifecycleState.PENDING_CONSENT:
        return Transition(life)  # a reconnect was declined: what there was before stays
    return Transition(
        _end(life, StateChange.CONSENT_DENIED, ErrorCode.CONSENT_DENIED), Command.END_CONSENT, denied=True
    )


def _consent_stands(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """The end of the consent could not be written: the store says revoking, granted, or a code waits."""
    news = it.result
    if news is None or life.state not in (LifecycleState.CONSENT_EXPIRED, LifecycleState.DENIED):
        return Transition(life)
    pending = life.model_copy(update={"state": LifecycleState.PENDING_CONSENT, "reason": None})
    if news.state is LifecycleState.REVOKING:
        return _revoking(pending, Command.REVOKE)
    if news.consent_id is not None:
        return _exchange(pending, news.consent_id)
    return _installed(pending, StateChange.GRANTED, news, now)


def _code_exchanged(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    news = it.result or GrantResult()
    if news.failure is not None:
        return Transition(life.model_copy(update={"refusal": news.failure}))
    return _installed(life, StateChange.GRANTED, news, now)


def _first(life: ConnectionState) -> Command:
    return Command.POLL_DEVICE_TOKEN if life.flow is Flow.DEVICE_CODE else Command.REQUEST_CLIENT_GRANT


def _grant_minted(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    news = it.result or GrantResult()
    if news.device_poll is not None:
        return Transition(after_device_poll(life, news, news.device_poll, it.consent_id, now))
    if news.failure is None:
        return _installed(first_token_received(life), StateChange.GRANTED, news, now)
    if news.failure in _ENDS and life.state is LifecycleState.PENDING_CONSENT:
        ended = _end(first_token_received(life), _ENDS[news.failure], news.failure)
        return Transition(ended, Command.END_CONSENT, denied=ended.state is LifecycleState.DENIED)
    return Transition(first_token_failed(life, news, it.consent_id, now, rules, share))


def _grant_refreshed(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    news = it.result or GrantResult()
    if news.state is LifecycleState.REVOKING and news.generation is None:
        return _revoking(life, Command.REVOKE)
    if news.not_leased:
        return Transition(life.model_copy(update={"leased": False, "retry_at": None}))
    if news.failure is None:
        return _not_at_once(life, _installed(life, StateChange.REFRESHED, news, now), now, rules)
    if FAILURES[news.failure].kind is FailureKind.RECONNECT_NEEDED:
        changes = {
            "state": state_after(life.state, StateChange.REJECTED),
            "reason": news.failure,
            "refusal": news.failure,
            "retry_at": None,
            "ask_at": None,
            "failures": 0,
        }
        return Transition(life.model_copy(update=changes))
    failures = life.failures + 1
    again = retry_at(now, failures, news.failure, news.retry_after, rules, share, refused=news.unknown_error)
    if news.failure is ErrorCode.REFRESH_PENDING and life.expires_at is not None and now < life.expires_at:
        # what is waited for may be decided once the token is over: callers then wait for us alone
        again = min(again, life.expires_at + rules.first_backoff)
    asked = caller_retry_at(now, again, news.failure, news.retry_after, rules, refused=news.unknown_error)
    changes = {
        "failures": failures,
        "retry_at": again,
        "ask_at": asked,
        "reason": news.failure,
        "refusal": news.failure,
    }
    return Transition(life.model_copy(update=changes))


def _revoked_elsewhere(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """The store says so already. A grant that came while the news were under way lives."""
    return Transition(after_external_revocation(life, it.seen_generation or 0))


def _reauthorize_asked(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    return Transition(life)  # the consent is in the store; its code comes as consent_granted


def _provider_changed(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    """An admin may have repaired what failed: look again at once."""
    spread = timedelta(0) if life.state is LifecycleState.REVOKING else rules.repaired_spread
    again = now + spread * share  # a whole fleet hears of it at once, and a revocation waits for nobody
    life = with_verification_at(life, again)
    if not life.failures:
        return Transition(life)
    return Transition(life.model_copy(update={"retry_at": again, "ask_at": now}))


def _time_came(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    woken = next_timer(life, rules, share)
    if woken is None or now < woken.at:
        return Transition(life)
    if woken.days is not None:
        return _announce(life, now, rules)
    if woken.at == verification_at(life):
        return Transition(life, Command.VERIFY_LATE_TOKENS)
    if woken.mints:
        return Transition(life, _first(life))
    if woken.looks:
        return Transition(life, Command.LOOK_UP_ACCOUNTS)
    if life.state is LifecycleState.PENDING_CONSENT:
        return Transition(
            _end(life, StateChange.CONSENT_EXPIRED, ErrorCode.CONSENT_EXPIRED), Command.END_CONSENT
        )
    if life.state is LifecycleState.REVOKING:
        return Transition(life, Command.REVOKE)
    adaptive = life.policy == RefreshPolicy.ADAPTIVE and life.refreshable
    in_any_case = life.interim or life.ends_together or woken.keeps  # nothing could be made of it later
    if adaptive and life.leased and life.failures == 0 and not in_any_case:
        return Transition(life, Command.REFRESH_IF_LEASED)
    return Transition(life, Command.REFRESH)


def _answer_came_late(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    verifying = verifying_late_tokens(life, it.attempt_id, rules)
    return Transition(life) if verifying is None else Transition(verifying, Command.VERIFY_LATE_TOKENS)


def _looked_up(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    after = after_account_lookup(life, it.result or GrantResult(), now, rules, share)
    return Transition(after, Command.REFRESH if lookup_needs_refresh(after, now) else Command.NOTHING)


def _choice_made(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    return Transition(life.model_copy(update={"choosing": False, "look_at": None}))


def _late_answer_tried(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    news = it.result or GrantResult()
    if news.state is LifecycleState.REVOKING and news.generation is None:
        return _revoking(life, Command.REVOKE)
    if life.state is LifecycleState.ACTIVE and (
        news.failure is not None or (news.generation or 0) <= life.generation
    ):
        return Transition(life.model_copy(update={"late": None}))  # what there is stays as it is
    if news.failure is None and news.generation is not None:
        return _installed(life, StateChange.GRANTED, news, now)
    following = verifying_late_tokens(life, news.next_late_attempt, rules)
    if following is not None:
        return Transition(following, Command.VERIFY_LATE_TOKENS)
    return Transition(after_failed_verification(life, news, now, rules, share))


def _revoke_asked(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    if life.state is LifecycleState.REVOKING:
        return Transition(life)  # the first one is being carried out, and never given up
    return _revoking(life, Command.BEGIN_REVOCATION, it.reason)


def _revocation_tried(
    life: ConnectionState, it: LifecycleEvent, now: datetime, rules: LifecycleRules, share: float
) -> Transition:
    if it.revocation is None:  # it is written; now the provider
        return Transition(life, Command.REVOKE)
    return Transition(after_revocation(life, it.revocation, now, rules, share))


def _announce(life: ConnectionState, now: datetime, rules: LifecycleRules) -> Transition:
    """Say the smallest number that is true; those that were missed are not made up for."""
    end = grant_ends_at(life)
    assert end is not None
    come = tuple(d for d in rules.announce_days if end - timedelta(days=d) <= now)
    announced = tuple(sorted({*life.announced, *come}, reverse=True))
    return Transition(
        life.model_copy(update={"announced": announced}), Command.ANNOUNCE_EXPIRY, days_before_end=min(come)
    )


def _not_at_once(
    before: ConnectionState, step: Transition, now: datetime, rules: LifecycleRules
) -> Transition:
    """A refresh that brought nothing newer is not due again at once, whatever the grant says."""
    life = step.state
    if life.state is not LifecycleState.ACTIVE or life.generation > before.generation:
        return step
    again = max(life.expires_at or now, now + rules.first_backoff)
    return Transition(life.model_copy(update={"retry_at": again}), step.command)


def _installed(life: ConnectionState, move: StateChange, news: GrantResult, now: datetime) -> Transition:
    state = state_after(life.state, move)
    changes = {
        "state": state,
        "generation": max(life.generation, news.generation or 0),
        **grant_facts_of(news),
        "leased": True,
        "failures": 0,
        "retry_at": None,
        "reason": ErrorCode.CONNECTION_REVOKED if state is LifecycleState.REVOKING else None,
        "ask_at": None,
        "installed_at": now,
        "refresh_extends": refresh_extends_end(life, move, news),
        **NO_LATE_TOKENS,
        **lookup_after_install(news, now),
    }
    after = life.model_copy(update=changes)
    if not is_same_end(grant_ends_at(life), grant_ends_at(after)):
        after = after.model_copy(update={"end_known_at": news.obtained_at, "announced": ()})
    if news.state is LifecycleState.REVOKING or state is LifecycleState.REVOKING:
        return _revoking(after, Command.REVOKE)
    return Transition(after)


def _revoking(life: ConnectionState, do: Command, reason: str | None = None) -> Transition:
    changes = {
        "state": state_after(life.state, StateChange.REVOCATION_REQUESTED),
        "reason": ErrorCode.CONNECTION_REVOKED,
        "revoke_reason": life.revoke_reason or reason,
        "failures": 0,
        "retry_at": None,
    }
    return Transition(life.model_copy(update=changes), do)


def _end(life: ConnectionState, move: StateChange, reason: ErrorCode) -> ConnectionState:
    return life.model_copy(update={"state": state_after(life.state, move), "reason": reason})


_Decider = Callable[[ConnectionState, LifecycleEvent, datetime, LifecycleRules, float], Transition]

_DECIDERS: dict[EventKind, _Decider] = {
    EventKind.CONSENT_GRANTED: _consent_granted,
    EventKind.CONSENT_DENIED: _consent_denied,
    EventKind.CODE_EXCHANGE_ENDED: _code_exchanged,
    EventKind.FIRST_TOKENS_ENDED: _grant_minted,
    EventKind.REFRESH_REQUESTED: on_refresh_requested,
    EventKind.TOKEN_REQUESTED: on_token_requested,
    EventKind.ROTATION_REQUESTED: on_rotation_requested,
    EventKind.REAUTHORIZATION_REQUESTED: _reauthorize_asked,
    EventKind.TIMER_FIRED: _time_came,
    EventKind.REFRESH_ENDED: _grant_refreshed,
    EventKind.REVOCATION_REQUESTED: _revoke_asked,
    EventKind.REVOCATION_ENDED: _revocation_tried,
    EventKind.PROVIDER_CHANGED: _provider_changed,
    EventKind.CONSENT_NOT_ENDED: _consent_stands,
    EventKind.REVOKED_AT_PROVIDER: _revoked_elsewhere,
    EventKind.LATE_TOKENS_RECEIVED: _answer_came_late,
    EventKind.LATE_VERIFICATION_ENDED: _late_answer_tried,
    EventKind.ACCOUNT_LOOKUP_ENDED: _looked_up,
    EventKind.ACCOUNT_CHOSEN: _choice_made,
}

__all__ = [
    "Command",
    "Timer",
    "Transition",
    "ensure_fresh_refusal",
    "next_step",
    "next_timer",
    "state_from_store",
]
