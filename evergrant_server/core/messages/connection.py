"""What crosses Temporal to and from a connection's workflow: input, state, events, signals, replies.

No secrets. A message is a contract: it stands in histories and in the outbox.
"""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Repairer
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.ids import AttemptId, ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.messages.activities import GrantFacts, GrantResult, RevocationResult
from evergrant_server.core.messages.base import Message, RequestMessage
from evergrant_server.core.messages.received import Generation
from evergrant_server.core.provider_events import ReportSource


class PendingConfirmation(Message):
    """A consent that its app has to confirm."""

    consent_id: ConsentId
    until: datetime


class ConnectionState(GrantFacts):
    """The workflow's own state of its connection: the facts that decide the next step."""

    state: LifecycleState = LifecycleState.PENDING_CONSENT
    flow: Flow = Flow.AUTHORIZATION_CODE
    policy: str = "adaptive"
    runs: int = 1  # since the connection began (continue-as-new adds one)
    generation: int = 0
    leased: bool = True  # False: this generation was looked at, and no app had leased it

    # the grant
    installed_at: datetime | None = None  # when this workflow learnt of the grant, by its own clock
    refresh_extends: bool | None = None  # whether a refresh moves `refresh_expires_at`; None: not seen yet
    end_known_at: datetime | None = None  # since when `announced` is about this end
    announced_days: tuple[int, ...] = ()  # days before the end that were announced

    # failures and tries
    failures: int = 0  # refreshes, first token requests or revocations failed in a row
    cause: FailureCause | None = None  # of the newest failed refresh
    tries: int = 0  # refreshes that failed for this cause in a row
    outages: int = 0  # refreshes that an outage failed, since the last one that worked
    retry_at: datetime | None = None
    caller_retry_at: datetime | None = None  # when a caller may cause another try; None: at `retry_at`
    reason: ErrorCode | None = None
    refusal: ErrorCode | None = None  # why the last request could not be carried out
    why_unsent: str | None = None  # what the operator has to allow, where the last refresh wasn't sent
    declined_s: float | None = None  # the last request may be repeated after this; nothing is wrong
    postponed_until: datetime | None = None  # a refresh that no caller waits for, for its provider's limit
    forced_refreshes: int = 0  # refreshes that reports of a refused token have forced
    last_forced_at: datetime | None = None
    reported_generation: int | None = None  # the generation whose token was reported as refused

    # consents and first tokens
    consent_deadline: datetime | None = None
    recent_consents: tuple[str, ...] = ()  # exchanged or refused already
    waiting_consent: ConsentId | None = None  # first tokens are requested for it at `retry_at` or `poll_at`
    poll_at: datetime | None = None
    poll_interval_s: float | None = None
    confirming: tuple[PendingConfirmation, ...] = ()

    # late tokens, accounts, callers
    late_attempt: AttemptId | None = None  # late tokens of this attempt wait to be verified
    verify_late_at: datetime | None = None
    late_failures: int = 0
    account_lookup_at: datetime | None = None  # when the accounts are looked up
    account_lookup_failures: int = 0  # failed in a row
    waiting_callers: tuple[str, ...] = ()  # workflows that are signalled once there is a token

    # revocation
    revoke_reason: str | None = None
    revocation: RevocationOutcome | None = None
    revocation_failure: ErrorCode | None = None  # what the last revocation attempt met
    revocation_failing_since: datetime | None = None  # the first of those attempts


class EventKind(StrEnum):
    """What can happen to a connection: signals, updates, timers, results of activities."""

    CONSENT_GRANTED = "consent_granted"
    CONSENT_DENIED = "consent_denied"
    CONSENT_RETURNED = "consent_returned"
    CONSENT_LAPSED = "consent_lapsed"
    CONSENT_NOT_ENDED = "consent_not_ended"
    CODE_EXCHANGE_ENDED = "code_exchange_ended"
    FIRST_TOKENS_ENDED = "first_tokens_ended"
    REFRESH_REQUESTED = "refresh_requested"
    TOKEN_REQUESTED = "token_requested"
    ROTATION_REQUESTED = "rotation_requested"
    REFRESH_ENDED = "refresh_ended"
    TIMER_FIRED = "timer_fired"
    PROVIDER_CHANGED = "provider_changed"
    REVOCATION_REQUESTED = "revocation_requested"
    REVOCATION_ENDED = "revocation_ended"
    REVOKED_AT_PROVIDER = "revoked_at_provider"
    LATE_TOKENS_RECEIVED = "late_tokens_received"
    LATE_VERIFICATION_ENDED = "late_verification_ended"
    ACCOUNT_LOOKUP_ENDED = "account_lookup_ended"
    ACCOUNT_CHOSEN = "account_chosen"


class RefreshReason(StrEnum):
    """Why a caller wants a newer grant."""

    COMMAND = "command"
    DUE = "due"  # the token is due by the caller's clock
    UNAUTHORIZED = "unauthorized"  # a resource server refused the token, though it should be valid


class LifecycleEvent(RequestMessage):
    kind: EventKind
    consent_id: ConsentId | None = None
    attempt_id: AttemptId | None = None
    seen_generation: int | None = None
    reason: str | None = None
    reply_to: str | None = None
    refresh_reason: RefreshReason = RefreshReason.COMMAND
    ahead: bool = False  # no caller waits for it
    repaired: bool = False  # an admin asks, who may have repaired what failed
    scopes: tuple[str, ...] = ()  # those of the narrower token that is requested
    result: GrantResult | None = None
    revocation: RevocationResult | None = None
    until: datetime | None = None


class ConnectionStart(RequestMessage):
    """The input of a connection's run; continue-as-new hands the next run the state so far."""

    tenant: Tenant
    connection_id: ConnectionId
    integration_id: IntegrationId
    integration: str
    provider: str
    subject_hash: str  # keyed; the subject itself is not in any index of Temporal
    longest: ClassVar[int] = 2**21  # Temporal's own limit: it holds what the run before didn't get to
    rules: int  # the version of LifecycleRules
    state: ConnectionState
    pending_events: tuple[LifecycleEvent, ...] = ()  # signals that the previous run did not get to


class ConnectionEnded(Message):
    state: LifecycleState
    revocation: RevocationOutcome | None
    generations: int


# --- signals -----------------------------------------------------------------------------


class ConsentGranted(RequestMessage):
    consent_id: ConsentId


class ConsentDenied(RequestMessage):
    consent_id: ConsentId


class ConsentReturned(RequestMessage):
    """A browser came back from the provider. What its app doesn't confirm until then is undone."""

    consent_id: ConsentId
    until: datetime


class Revoke(RequestMessage):
    reason: str


class Rotate(RequestMessage):
    """Refresh now. With `seen_generation`, a grant that is newer than that is left as it is."""

    reason: str
    seen_generation: Generation | None = None


class RequestToken(RequestMessage):
    """`app` asks for a fresh token; `token_ready` goes to the workflow `reply_to`."""

    app: str
    reply_to: str


class TokenReady(Message):
    """The answer to `request_token`: facts, and a code instead when there is no token.

    `again`: the subject or an admin has to act; another answer comes when there is a token.
    """

    connection_id: ConnectionId
    generation: int
    expires_at: datetime | None
    problem: ErrorCode | None
    again: bool


class ProviderChanged(RequestMessage):
    """The integration, or what a refresh depends on, has changed: what failed may work now."""

    version: int


class RevokedAtProvider(RequestMessage):
    """The provider has ended the grant of `generation`."""

    generation: Generation
    source: ReportSource


class LateTokensReceived(RequestMessage):
    """Tokens of this attempt came after it had been given up; they are kept sealed in the store."""

    attempt_id: AttemptId


class AccountChosen(RequestMessage):
    """The account has been chosen, and written to the store."""

    choice: str


# --- updates and queries -----------------------------------------------------------------


class EnsureFresh(RequestMessage):
    """Make the grant newer than `seen_generation`; done at once when it already is.

    With `scopes` the refresh requests an access token with these alone, and the one that there is stays.
    """

    seen_generation: Generation
    refresh_reason: RefreshReason = RefreshReason.COMMAND
    ahead: bool = False  # no caller waits for it
    repaired: bool = False  # an admin asks, who may have repaired what failed
    scopes: tuple[str, ...] = ()


class EnsureFreshResult(Message):
    """The generation now, or why there is no newer one. `retry_after` is in seconds.

    `declined`: nothing is wrong, and nothing was done; ask again after `retry_after`.
    """

    generation: int
    problem: ErrorCode | None = None
    retry_after: float | None = None
    declined: bool = False
    why: str | None = None  # of `problem`, where it says more than its code


class ConnectionDescription(Message):
    """What the `describe` query answers."""

    connection_id: ConnectionId
    state: LifecycleState
    generation: int
    expires_at: datetime | None
    next_step: str
    next_at: datetime | None
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    revocation_failure: ErrorCode | None  # what the last revocation attempt met
    revocation_failing_since: datetime | None  # when the first of those attempts failed
    waiting_callers: tuple[str, ...]  # a run that replaces this one goes on with them
