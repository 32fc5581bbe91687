"""What a connection's life makes of a first token that nobody has to consent to. Pure."""

from datetime import datetime

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import (
    DEFAULT_INTERVAL_S,
    DevicePoll,
    next_poll_at,
    next_poll_interval,
)
from evergrant_server.core.errors import FAILURES, ErrorCode, RetryAdvice
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.schedule import LifecycleRules, retry_at
from evergrant_server.core.messages.connection import ConnectionState, GrantResult

_WAITS = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)


def first_token_received(life: ConnectionState) -> ConnectionState:
    """It came: nothing is waited for any more."""
    return life.model_copy(update={"waiting_consent": None, "poll_at": None, "poll_interval_s": None})


def after_device_poll(
    life: ConnectionState, news: GrantResult, poll: DevicePoll, consent: ConsentId | None, now: datetime
) -> ConnectionState:
    """Nobody has approved the device code yet: ask again, never sooner than the last time."""
    interval = next_poll_interval(news.interval_s or life.poll_interval_s or DEFAULT_INTERVAL_S, poll)
    changes = {
        "waiting_consent": consent,
        "poll_interval_s": interval,
        "poll_at": next_poll_at(now, interval),
    }
    return life.model_copy(update=changes)


def first_token_failed(
    life: ConnectionState,
    news: GrantResult,
    consent: ConsentId | None,
    now: datetime,
    rules: LifecycleRules,
    share: float,
) -> ConnectionState:
    """What time or an admin may repair is tried again; where a grant is at work, nothing is lost."""
    code = news.failure or ErrorCode.INTERNAL
    life = first_token_received(life).model_copy(update={"refusal": code})
    if life.state not in _WAITS:
        return life
    failures = life.failures + 1
    life = life.model_copy(update={"failures": failures, "reason": code, "retry_at": None})
    if FAILURES[code].retry is RetryAdvice.NEVER or news.consent_over:
        return life
    again = retry_at(now, failures, code, news.retry_after, rules, share)
    return life.model_copy(update={"waiting_consent": consent, "retry_at": again})
