"""A grant in a connection's state: installed, ended, revoked. Pure.

A new grant makes much obsolete. A revocation is written to the store first, and then tried at the
provider until that confirms it.
"""

from datetime import datetime, timedelta
from typing import Any

from evergrant_server.core.clock import CLOCK_SKEW, add_time
from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.schedule import LifecycleRules, revocation_retry_at
from evergrant_server.core.messages.activities import GrantFacts, GrantResult, RevocationResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent
from evergrant_server.core.provider_events import ReportSource

_LAST_CHANCE = 0.9  # of the refresh token's lifetime, after which no lost reply is waited for
_SAME_END = timedelta(hours=1)  # replies round, and clocks differ a little


def token_ends_at(connection: ConnectionState) -> datetime | None:
    """When the access token ends by the workflow's own clock: a worker's clock may be behind."""
    if connection.expires_at is None or connection.installed_at is None or connection.obtained_at is None:
        return connection.expires_at
    return max(
        connection.expires_at,
        add_time(connection.installed_at, connection.expires_at - connection.obtained_at),
    )


def token_has_ended(connection: ConnectionState, now: datetime) -> bool:
    ends = token_ends_at(connection)
    return ends is not None and now >= ends


def no_token_to_protect(connection: ConnectionState, now: datetime) -> bool:
    """True when waiting for a lost answer keeps no token alive: the access token has ended or was
    refused, or the refresh token is about to end."""
    if connection.reported_generation == connection.generation or token_has_ended(connection, now):
        return True
    return _refresh_token_is_about_to_end(connection, now)


def awaits_evidence(connection: ConnectionState, now: datetime) -> bool:
    """True when the provider has refused the grant, and isn't due to be asked again: only evidence is worth
    another request."""
    again = connection.retry_at
    return connection.cause is FailureCause.REFUSAL and again is not None and now < again


def may_come_later(connection: ConnectionState, now: datetime) -> bool:
    """True when a refresh some minutes later finds what it needs as well."""
    now_or_never = connection.short_lived or connection.ends_together
    return not (now_or_never or _refresh_token_is_about_to_end(connection, now))


def _refresh_token_is_about_to_end(connection: ConnectionState, now: datetime) -> bool:
    if connection.obtained_at is None:
        return False
    span = refreshable_for(connection)
    return span is not None and now >= add_time(connection.obtained_at, span * _LAST_CHANCE)


def without_future_dates(result: GrantResult, now: datetime) -> GrantResult:
    """A grant that is dated later than `now` comes from a worker whose clock is ahead: shift its dates."""
    if result.obtained_at is None or result.obtained_at <= now + CLOCK_SKEW:
        return result
    ahead = result.obtained_at - now
    expires_at, refresh_expires_at = result.expires_at, result.refresh_expires_at
    return result.__replace__(
        obtained_at=now,
        expires_at=None if expires_at is None else expires_at - ahead,
        refresh_expires_at=None if refresh_expires_at is None else refresh_expires_at - ahead,
    )


def grant_ends_at(connection: ConnectionState) -> datetime | None:
    """When the grant ends unless the subject consents again; None when no end is known."""
    if not connection.refreshable:
        return connection.expires_at
    if connection.refresh_extends is False or connection.failures:
        return connection.refresh_expires_at
    return None  # refreshing keeps it alive


def silence_ends_at(connection: ConnectionState) -> datetime | None:
    """When the refresh token ends because nothing uses it; None when no such end is known."""
    idle_s, obtained_at = connection.refresh_token_idle_s, connection.obtained_at
    return None if idle_s is None or obtained_at is None else add_time(obtained_at, idle_s)


def announced_end(connection: ConnectionState, rules: LifecycleRules) -> datetime | None:
    """As `grant_ends_at`; while refreshes fail, also the end by silence, which the next one would put off."""
    ends = [grant_ends_at(connection)]
    if rules.against_silence and connection.failures and connection.refreshable:
        ends.append(silence_ends_at(connection))
    return min((end for end in ends if end is not None), default=None)


def is_same_end(first: datetime | None, second: datetime | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= _SAME_END


def refreshable_for(connection: ConnectionState) -> float | None:
    """Seconds from when the grant was obtained: until then a refresh keeps its refresh token alive."""
    assert connection.obtained_at is not None
    spans = [] if connection.refresh_token_idle_s is None else [connection.refresh_token_idle_s]
    ages = connection.refreshable and connection.refresh_extends is not False
    if ages and connection.refresh_expires_at is not None:
        left = (connection.refresh_expires_at - connection.obtained_at).total_seconds()
        spans += [left] if left > 0 else []
    return min(spans, default=None)


def refresh_extends_end(connection: ConnectionState, change: StateChange, result: GrantResult) -> bool | None:
    """Did this refresh move the refresh token's end? None while that isn't known."""
    if change is not StateChange.REFRESHED:
        return None  # another grant, which may behave otherwise
    before, after = connection.refresh_expires_at, result.refresh_expires_at
    if before is None or after is None or connection.obtained_at is None or result.obtained_at is None:
        return connection.refresh_extends
    passed = result.obtained_at - connection.obtained_at
    if passed < timedelta(minutes=1):
        return connection.refresh_extends  # too short to tell a moved end from a rounded one
    return after - before > passed / 2


def without_late_tokens(connection: ConnectionState) -> ConnectionState:
    return connection.__replace__(late_attempt=None, verify_late_at=None, late_failures=0)


def without_failures(connection: ConnectionState) -> ConnectionState:
    """The connection as if no refresh had failed since the newest that worked."""
    return connection.__replace__(failures=0, cause=None, tries=0, outages=0)


def grant_facts_of(result: GrantResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in GrantFacts.model_fields}


def install(
    connection: ConnectionState, change: StateChange, result: GrantResult, now: datetime
) -> Transition:
    """The grant replaces the one before; in a connection that is revoking it is only revoked."""
    state = state_after(connection.state, change)
    kept = result.access_generation
    known = kept is not None and 0 < kept <= connection.generation  # a narrower token came beside it
    after = without_failures(without_late_tokens(connection)).__replace__(
        state=state,
        generation=max(connection.generation, result.generation or 0),
        **grant_facts_of(result),
        leased=True,
        retry_at=None,
        caller_retry_at=None,
        postponed_until=None,
        reason=ErrorCode.CONNECTION_REVOKED if state is LifecycleState.REVOKING else None,
        why_unsent=None,
        installed_at=connection.installed_at if known else now,
        refresh_extends=refresh_extends_end(connection, change, result),
        account_lookup_at=now if result.account_lookup_needed else None,
        account_lookup_failures=0,
    )
    end = grant_ends_at(after)
    if not is_same_end(grant_ends_at(connection), end) or (connection.announced_days and end is None):
        after = after.__replace__(end_known_at=result.obtained_at, announced_days=())
    if LifecycleState.REVOKING in (result.state, state):
        return start_revoking(after, Command.REVOKE)
    return Transition(after)


def start_revoking(connection: ConnectionState, command: Command, reason: str | None = None) -> Transition:
    return Transition(
        without_failures(connection).__replace__(
            state=state_after(connection.state, StateChange.REVOCATION_REQUESTED),
            reason=ErrorCode.CONNECTION_REVOKED,
            revoke_reason=connection.revoke_reason or reason,
            retry_at=None,
        ),
        command,
    )


def store_is_revoking(result: GrantResult) -> bool:
    """True when the store says `revoking` in place of a grant."""
    return result.state is LifecycleState.REVOKING and result.generation is None


def on_revocation_requested(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A second request changes nothing: the first one is carried out, and never given up."""
    if connection.state is LifecycleState.REVOKING:
        return Transition(connection)
    return start_revoking(connection, Command.BEGIN_REVOCATION, event.reason)


def on_revocation_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """Without a result, the store has just been written: the provider comes next."""
    if event.revocation is None:
        return Transition(connection, Command.REVOKE)
    return Transition(_after_revocation(connection, event.revocation, at))


def on_revoked_at_provider(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """The provider, or a campaign, ended a generation, as the store says already; a newer grant stays."""
    has_grant = connection.state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
    if not has_grant or connection.generation > (event.seen_generation or 0):
        return Transition(connection)
    campaign = event.reason == ReportSource.CAMPAIGN
    reason = ErrorCode.RECONSENT_REQUIRED if campaign else ErrorCode.GRANT_REVOKED_ELSEWHERE
    return Transition(
        without_failures(connection).__replace__(
            state=LifecycleState.NEEDS_REAUTH,
            reason=reason,
            retry_at=None,
            caller_retry_at=None,
        )
    )


def _after_revocation(connection: ConnectionState, result: RevocationResult, at: Moment) -> ConnectionState:
    """Ended once the provider has confirmed, or has no revocation; otherwise tried again."""
    if result.revocation is not None:
        return connection.__replace__(
            state=state_after(connection.state, StateChange.REVOCATION_ENDED),
            revocation=result.revocation,
            revocation_failure=None,
            revocation_failing_since=None,
            retry_at=None,
        )
    failures, code = connection.failures + 1, result.failure or ErrorCode.INTERNAL
    again = revocation_retry_at(at.now, failures, code, result.retry_after, at.rules, at.share)
    after = connection.__replace__(failures=failures, retry_at=again)
    if code is ErrorCode.REFRESH_PENDING:  # it waits for the tokens of an open attempt, to revoke them too
        return after
    return after.__replace__(
        revocation_failure=result.failure,
        revocation_failing_since=connection.revocation_failing_since or at.now,
    )
