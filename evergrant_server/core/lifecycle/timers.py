"""The next timer of a connection's workflow, whose times `schedule` computes: a refresh, an end. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from evergrant_server.core.clock import add_time
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.lifecycle.confirmations import next_to_lapse
from evergrant_server.core.lifecycle.grants import announced_end, refreshable_for
from evergrant_server.core.lifecycle.schedule import LifecycleRules, RefreshPolicy, due_at, keep_alive_at
from evergrant_server.core.messages.connection import ConnectionState

# Late tokens may be the way back to a grant here.
STATES_WITHOUT_GRANT = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)


# What the next try of a failed refresh decides, by the cause of the failure.
_NEXT_TRY: dict[FailureCause | None, str] = {
    FailureCause.REFUSAL: "ask again: the provider has refused the grant by an error that doesn't say why",
    FailureCause.LOST_ANSWER: "send the refresh again: the answer to the one before was lost",
}


class TimerPurpose(Enum):
    """What the workflow does when the timer fires."""

    REFRESH = auto()
    KEEP_ALIVE = auto()  # refresh, whether or not the grant was leased
    ANNOUNCE_EXPIRY = auto()
    REQUEST_FIRST_TOKENS = auto()
    LOOK_UP_ACCOUNTS = auto()
    VERIFY_LATE_TOKENS = auto()
    END_CONSENT = auto()
    LAPSE_CONSENT = auto()
    REVOKE = auto()


@dataclass(frozen=True)
class Timer:
    """The next moment that matters. `summary` is what the Temporal UI shows."""

    at: datetime
    summary: str
    purpose: TimerPurpose = TimerPurpose.REFRESH


def _timer(at: datetime | None, summary: str, purpose: TimerPurpose) -> Timer | None:
    return None if at is None else Timer(at, summary, purpose)


def next_timer(connection: ConnectionState, rules: LifecycleRules, share: float = 0.0) -> Timer | None:
    """The earliest timer; None when the connection waits for a message alone."""
    match connection.state:
        case LifecycleState.PENDING_CONSENT:
            return _earlier(
                _deadline(connection, rules),
                _late_verification(connection),
                _first_tokens(connection),
                _confirm_time_over(connection),
            )
        case LifecycleState.NEEDS_REAUTH:
            return _earlier(
                _late_verification(connection), _first_tokens(connection), _confirm_time_over(connection)
            )
        case LifecycleState.REVOKING:
            return _timer(connection.retry_at, "revoke again", TimerPurpose.REVOKE)
        case LifecycleState.ACTIVE:
            lookup_at = connection.account_lookup_at
            return _earlier(
                _refresh(connection, rules, share),
                _announcement(connection, rules),
                _device_poll(connection),
                _confirm_time_over(connection),
                _timer(lookup_at, "look up the accounts", TimerPurpose.LOOK_UP_ACCOUNTS),
            )
        case _:
            return None


def _deadline(connection: ConnectionState, rules: LifecycleRules) -> Timer | None:
    if connection.consent_deadline is None:
        return None
    ends = connection.consent_deadline + rules.consent_grace
    return Timer(ends, "consent deadline", TimerPurpose.END_CONSENT)


def _confirm_time_over(connection: ConnectionState) -> Timer | None:
    first = next_to_lapse(connection)
    until = None if first is None else first.until
    return _timer(until, "confirmation deadline", TimerPurpose.LAPSE_CONSENT)


def _late_verification(connection: ConnectionState) -> Timer | None:
    at = None if connection.late_attempt is None else connection.verify_late_at
    probably_over = connection.reason is ErrorCode.GRANT_PROBABLY_OVER
    summary = "try the grant once more that is probably over" if probably_over else "verify late tokens again"
    return _timer(at, summary, TimerPurpose.VERIFY_LATE_TOKENS)


def refresh_due_at(connection: ConnectionState, rules: LifecycleRules, share: float = 0.0) -> datetime | None:
    """When the access token is to be replaced; None when it never expires."""
    if connection.expires_at is None or connection.obtained_at is None:
        return None
    return due_at(
        connection.obtained_at,
        connection.expires_at,
        rules,
        share,
        margin_s=connection.margin_s,
        min_age_s=connection.min_age_s,
    )


def earliest_refresh_at(connection: ConnectionState) -> datetime | None:
    """The provider is declared to refuse a refresh before this; None: at no time."""
    moments: list[datetime] = []
    if connection.min_age_s is not None and connection.obtained_at is not None:
        moments.append(add_time(connection.obtained_at, connection.min_age_s))
    if connection.margin_s is not None and connection.expires_at is not None:
        moments.append(connection.expires_at - timedelta(seconds=connection.margin_s))
    return max(moments, default=None)


def settled_at(connection: ConnectionState, rules: LifecycleRules) -> datetime | None:
    """The earliest refresh after an installation; None for a grant without an expiry.

    Guards against slow clocks: tokens from a worker whose clock is an hour behind look expired at once.
    """
    if connection.installed_at is None or connection.expires_at is None or connection.obtained_at is None:
        return None
    quarter = (connection.expires_at - connection.obtained_at) / 4
    return connection.installed_at + min(rules.shortest_interval, quarter)


def _earlier(*moments: Timer | None) -> Timer | None:
    return min((moment for moment in moments if moment), key=lambda moment: moment.at, default=None)


def _first_tokens(connection: ConnectionState) -> Timer | None:
    """When first tokens are requested or polled next: without a subject, or with a device code."""
    if connection.waiting_consent is None or connection.poll_at is not None:
        return _device_poll(connection)
    return _timer(connection.retry_at, "request first tokens again", TimerPurpose.REQUEST_FIRST_TOKENS)


def _device_poll(connection: ConnectionState) -> Timer | None:
    return _timer(connection.poll_at, "poll the device code", TimerPurpose.REQUEST_FIRST_TOKENS)


def _refresh(connection: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    if connection.retry_at is not None:
        return Timer(connection.retry_at, _NEXT_TRY.get(connection.cause, "try the refresh again"))
    if connection.postponed_until is not None:
        return Timer(connection.postponed_until, "refresh that was postponed for the provider's limit")
    if connection.short_lived and connection.obtained_at is not None:
        return Timer(connection.obtained_at, "exchange the first token for a long-lived one")
    if connection.obtained_at is None:
        return None
    if connection.expires_at is None:
        refreshes = rules.against_silence and connection.refreshable and not connection.flow.is_client_grant
        return _keep_alive(connection, rules, share) if refreshes else None
    if not connection.refreshable:
        return Timer(connection.expires_at, "access token expires, and can't be refreshed")
    if connection.ends_together:
        return _before_the_end(connection, rules, share)
    ahead = connection.policy == RefreshPolicy.WARM or (
        connection.policy == RefreshPolicy.ADAPTIVE and connection.leased
    )
    at = refresh_due_at(connection, rules, share)
    if ahead and at is not None:
        refresh = Timer(max(at, settled_at(connection, rules) or at), "refresh due")
        return _earlier(refresh, _keep_alive(connection, rules, share))
    return _keep_alive(connection, rules, share)


def _before_the_end(connection: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    """The refresh of a token that ends with its refresh token: at half its life, so that an outage may end.

    Where a refresh doesn't move that end, the margin is early enough.
    """
    kept, last = _keep_alive(connection, rules, share), refresh_due_at(connection, rules, share)
    if kept is not None:
        at = max(kept.at, earliest_refresh_at(connection) or kept.at)
        return Timer(at, "refresh long before the token ends")
    return None if last is None else Timer(max(last, settled_at(connection, rules) or last), "refresh due")


def _keep_alive(connection: ConnectionState, rules: LifecycleRules, share: float) -> Timer | None:
    """Before the refresh token ends by idleness, or by an age that a refresh starts anew."""
    assert connection.obtained_at is not None
    span = refreshable_for(connection)
    if span is None:
        return None
    at = keep_alive_at(connection.obtained_at, span, rules, share)
    settled = settled_at(connection, rules)
    if connection.expires_at is None and connection.installed_at is not None:
        settled = connection.installed_at + rules.shortest_interval  # a worker's clock may be behind
    at = max(at, settled or at)
    return Timer(at, "keep the refresh token alive", TimerPurpose.KEEP_ALIVE)


def _announcement(connection: ConnectionState, rules: LifecycleRules) -> Timer | None:
    """The next announcement: of missed ones only the last, and none from before the grant."""
    end, known = announced_end(connection, rules), connection.end_known_at or connection.obtained_at
    if end is None or known is None:
        return None
    left = [days for days in rules.announce_days if days not in connection.announced_days]
    at = min((at for days in left if (at := end - timedelta(days=days)) > known), default=None)
    return _timer(at, "announce that the grant ends", TimerPurpose.ANNOUNCE_EXPIRY)
