"""What a consent leads to: a code exchange, first tokens, another device poll, or its end. Pure.

Then the accounts of the new grant are looked up, and one is chosen if there are several. The lookup
asks with the access token and spends nothing, so it is tried until it has an answer.
"""

from datetime import datetime, timedelta

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.connections.device_code import DEFAULT_INTERVAL_S, DevicePoll, next_poll_interval
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, RetryAdvice
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.confirmations import without_confirmation
from evergrant_server.core.lifecycle.grants import install, start_revoking
from evergrant_server.core.lifecycle.schedule import retry_at
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent

_REMEMBERED_CONSENTS = 20
_CONSENT_ENDS = {
    ErrorCode.CONSENT_DENIED: StateChange.CONSENT_DENIED,
    ErrorCode.CONSENT_EXPIRED: StateChange.CONSENT_EXPIRED,
}


def on_consent_granted(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """The signal comes at least once; the consent is used once."""
    if event.consent_id is None or event.consent_id in connection.recent_consents:
        return Transition(connection)
    return _use_consent(connection, event.consent_id)


def on_consent_denied(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A denied reauthorization leaves the grant as it is."""
    if connection.state is not LifecycleState.PENDING_CONSENT:
        return Transition(connection)
    return Transition(_ended(connection, ErrorCode.CONSENT_DENIED), Command.END_CONSENT, denied=True)


def on_consent_expired(connection: ConnectionState) -> Transition:
    return Transition(_ended(connection, ErrorCode.CONSENT_EXPIRED), Command.END_CONSENT)


def on_consent_not_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """The store didn't take the consent's end: it says revoking, granted, that a code waits, or that a link
    was offered since, with a later deadline."""
    result = event.result
    if result is None or connection.state not in (LifecycleState.CONSENT_EXPIRED, LifecycleState.DENIED):
        return Transition(connection)
    pending = connection.__replace__(state=LifecycleState.PENDING_CONSENT, reason=None)
    if result.state is LifecycleState.REVOKING:
        return start_revoking(pending, Command.REVOKE)
    if result.consent_id is not None:
        return _use_consent(pending, result.consent_id)
    if result.consent_deadline is not None:
        return Transition(pending.__replace__(consent_deadline=result.consent_deadline))
    return install(pending, StateChange.GRANTED, result, at.now)


def on_code_exchange_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    result = event.result or GrantResult()
    if result.failure is not None:
        return Transition(connection.__replace__(refusal=result.failure))
    return install(connection, StateChange.GRANTED, result, at.now)


def on_first_tokens_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A client grant or a device poll has an answer."""
    result = event.result or GrantResult()
    if result.device_poll is not None:
        return Transition(_poll_again(connection, result, result.device_poll, event.consent_id, at))
    connection = connection.__replace__(waiting_consent=None, poll_at=None, poll_interval_s=None)
    if result.failure is None:
        return install(connection, StateChange.GRANTED, result, at.now)
    if result.failure in _CONSENT_ENDS and connection.state is LifecycleState.PENDING_CONSENT:
        denied = result.failure is ErrorCode.CONSENT_DENIED
        return Transition(_ended(connection, result.failure), Command.END_CONSENT, denied=denied)
    return Transition(_request_again(connection, result, result.failure, event.consent_id, at))


def request_first_tokens(connection: ConnectionState) -> Command:
    device = connection.flow is Flow.DEVICE_CODE
    return Command.POLL_DEVICE_TOKEN if device else Command.REQUEST_CLIENT_GRANT


def _use_consent(connection: ConnectionState, consent: ConsentId) -> Transition:
    recent = (*connection.recent_consents, consent)[-_REMEMBERED_CONSENTS:]
    connection = without_confirmation(connection, consent).__replace__(recent_consents=recent)
    if connection.flow.uses_browser:
        return Transition(connection, Command.EXCHANGE_CODE)
    waiting = connection.__replace__(waiting_consent=consent)
    return Transition(waiting, request_first_tokens(connection))


def _ended(connection: ConnectionState, reason: ErrorCode) -> ConnectionState:
    state = state_after(connection.state, _CONSENT_ENDS[reason])
    return connection.__replace__(state=state, reason=reason)


def _poll_again(
    connection: ConnectionState, result: GrantResult, poll: DevicePoll, consent: ConsentId | None, at: Moment
) -> ConnectionState:
    """The device code isn't approved yet: poll again, never sooner than before (RFC 8628 section 3.5)."""
    interval = next_poll_interval(result.interval_s or connection.poll_interval_s or DEFAULT_INTERVAL_S, poll)
    return connection.__replace__(
        poll_interval_s=interval, poll_at=at.now + timedelta(seconds=interval), waiting_consent=consent
    )


def _request_again(
    connection: ConnectionState,
    result: GrantResult,
    code: ErrorCode,
    consent: ConsentId | None,
    at: Moment,
) -> ConnectionState:
    """What time or an admin may repair is tried again; a grant that works is left as it is."""
    connection = connection.__replace__(refusal=code)
    if connection.state not in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH):
        return connection
    failures = connection.failures + 1
    connection = connection.__replace__(failures=failures, reason=code, retry_at=None)
    if FAILURES[code].retry is RetryAdvice.NEVER or result.consent_over:
        return connection
    again = retry_at(at.now, failures, code, result.retry_after, at.rules, at.share)
    return connection.__replace__(waiting_consent=consent, retry_at=again)


def on_account_lookup_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    after = _after_lookup(connection, event.result or GrantResult(), at)
    return Transition(after, Command.REFRESH if _needs_refresh(after, at.now) else Command.NOTHING)


def on_account_chosen(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    return Transition(connection.__replace__(choice_pending=False, account_lookup_at=None))


def blocking_reason(connection: ConnectionState) -> ErrorCode | None:
    """Why the connection can't be used as it is."""
    undecided = connection.choice_pending and connection.state is LifecycleState.ACTIVE
    return connection.reason or (ErrorCode.CHOICE_REQUIRED if undecided else None)


def _after_lookup(connection: ConnectionState, result: GrantResult, at: Moment) -> ConnectionState:
    """The answer, or the moment of the next try."""
    another = result.generation not in (None, connection.generation)  # it has a lookup of its own
    if connection.state is not LifecycleState.ACTIVE or another:
        return connection.__replace__(account_lookup_at=None)
    if result.failure is None:
        return connection.__replace__(
            account_lookup_at=None, account_lookup_failures=0, choice_pending=result.choice_pending
        )
    failures = connection.account_lookup_failures + 1
    again = retry_at(at.now, failures, result.failure, result.retry_after, at.rules, at.share)
    return connection.__replace__(account_lookup_failures=failures, account_lookup_at=again)


def _needs_refresh(connection: ConnectionState, now: datetime) -> bool:
    """The lookup waits for a valid token, and no other timer is about to bring one."""
    ended = connection.expires_at is not None and connection.expires_at <= now
    waits = connection.account_lookup_at is not None and connection.retry_at is None
    return ended and waits and connection.refreshable
