"""Everything that crosses Temporal: names, inputs, signals, updates, results. No secrets.

All a caller may know of the connection workflow is here: task queue, signal, update and
query names, and the shapes of what they carry.
"""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Repairer
from evergrant_server.core.ids import AttemptId, ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.messages.activities import ActivityName as ActivityName
from evergrant_server.core.messages.activities import AnnounceExpiry as AnnounceExpiry
from evergrant_server.core.messages.activities import BeginRevocation as BeginRevocation
from evergrant_server.core.messages.activities import ConnectionCall as ConnectionCall
from evergrant_server.core.messages.activities import DiscoverEndpoints as DiscoverEndpoints
from evergrant_server.core.messages.activities import DiscoveryResult as DiscoveryResult
from evergrant_server.core.messages.activities import EndConsent as EndConsent
from evergrant_server.core.messages.activities import ExchangeCode as ExchangeCode
from evergrant_server.core.messages.activities import ExportRunHistory as ExportRunHistory
from evergrant_server.core.messages.activities import GrantResult as GrantResult
from evergrant_server.core.messages.activities import RefreshGrant as RefreshGrant
from evergrant_server.core.messages.activities import RequestFirstTokens as RequestFirstTokens
from evergrant_server.core.messages.activities import RevocationResult as RevocationResult
from evergrant_server.core.messages.activities import RevokeGrant as RevokeGrant
from evergrant_server.core.messages.base import Message
from evergrant_server.core.messages.base import Provenance as Provenance
from evergrant_server.core.messages.base import RequestContext as RequestContext
from evergrant_server.core.messages.export import DeleteExport as DeleteExport
from evergrant_server.core.messages.export import ExportCall as ExportCall
from evergrant_server.core.messages.export import ExportProgress as ExportProgress
from evergrant_server.core.messages.export import ExportResult as ExportResult
from evergrant_server.core.messages.export import ExportStart as ExportStart
from evergrant_server.core.messages.export import SealExportPage as SealExportPage

_LONGEST_ID = 1000  # bytes, Temporal's own limit

TASK_QUEUE = "evergrant"
CONNECTION_WORKFLOW = "ConnectionWorkflow"
DISCOVERY_WORKFLOW = "DiscoveryWorkflow"
EXPORT_WORKFLOW = "ExportWorkflow"

SIGNAL_CONSENT_GRANTED = "consent_granted"
SIGNAL_CONSENT_DENIED = "consent_denied"
SIGNAL_REVOKE = "revoke"
SIGNAL_ROTATE = "rotate"
SIGNAL_REQUEST_TOKEN = "request_token"
SIGNAL_PROVIDER_CHANGED = "provider_changed"
SIGNAL_TOKEN_READY = "token_ready"  # sent back to the caller's workflow
UPDATE_ENSURE_FRESH = "ensure_fresh"
UPDATE_REAUTHORIZE = "reauthorize"
UPDATE_REVOKE = "revoke"
QUERY_DESCRIBE = "describe"


class ConnectionState(Message):
    """What the workflow knows of its connection: facts that decide the next step."""

    state: LifecycleState = LifecycleState.PENDING_CONSENT
    generation: int = 0
    obtained_at: datetime | None = None
    expires_at: datetime | None = None  # None while active: the token never expires
    refreshable: bool = False
    idle_s: float | None = None  # the refresh token dies after this many idle seconds
    policy: str = "adaptive"
    consent_deadline: datetime | None = None
    leased: bool = True  # False: this generation was looked at and nobody had leased it
    failures: int = 0  # refreshes or revocations failed in a row
    failed: ErrorCode | None = None  # what the last of these revocations met
    failing_since: datetime | None = None  # the first of them
    retry_at: datetime | None = None
    reason: ErrorCode | None = None
    refusal: ErrorCode | None = None  # why the last thing that was asked could not be done
    revoke_reason: str | None = None
    revocation: RevocationOutcome | None = None
    runs: int = 1  # runs since the connection began (continue-as-new adds one)
    recent_consents: tuple[str, ...] = ()  # consents already exchanged or refused
    ask_at: datetime | None = None  # from when on a caller may cause another try; None: at `retry_at`
    declined_s: float | None = None  # the last thing asked was not done, and may be asked again after this
    installed_at: datetime | None = None  # when this workflow heard of the grant, by its own clock
    refresh_expires_at: datetime | None = None
    refresh_extends: bool | None = None  # does a refresh move that moment? None: not seen yet
    margin_s: float | None = None  # a refresh earlier before the expiry is refused
    min_age_s: float | None = None  # a refresh of a younger token is refused
    end_known_at: datetime | None = None  # since when `announced` is about this end
    announced: tuple[int, ...] = ()  # days before the end that were announced
    announce_days: tuple[int, ...] | None = None  # as was set when the grant came; None: the rules' own
    forced: int = 0  # refreshes that reports of a refused token have forced, see `forced_at`
    forced_at: datetime | None = None
    reported: int | None = None  # the generation whose token was reported as refused
    late: AttemptId | None = None  # an answer that came too late waits to be verified
    reply_later: tuple[str, ...] = ()  # workflows that hear again once there is a token
    flow: Flow = Flow.AUTHORIZATION_CODE
    waiting_consent: ConsentId | None = None  # not over: looked at again at `retry_at`, or `poll_at`
    poll_at: datetime | None = None
    poll_interval_s: float | None = None
    late_at: datetime | None = None  # when `late` is verified again; before rules 3 that was `retry_at`
    late_failures: int = 0  # verifications of it that said nothing, in a row
    look_at: datetime | None = None  # when the provider is asked which accounts there are
    look_ups: int = 0  # how often that failed, in a row
    choosing: bool = False  # there are several, and nobody has said which
    interim: bool = False  # this token is to be exchanged for a long-lived one, at once
    ends_together: bool = False  # what a refresh is made from is over when the access token is


class EventKind(StrEnum):
    """What can happen to a connection's workflow: signals, updates, timers, activity results."""

    CONSENT_GRANTED = "consent_granted"
    CONSENT_DENIED = "consent_denied"
    CODE_EXCHANGE_ENDED = "code_exchanged"
    FIRST_TOKENS_ENDED = "grant_minted"
    REFRESH_REQUESTED = "freshness_asked"
    TOKEN_REQUESTED = "token_requested"
    ROTATION_REQUESTED = "rotate_asked"
    REAUTHORIZATION_REQUESTED = "reauthorize_asked"
    TIMER_FIRED = "time_came"
    REFRESH_ENDED = "grant_refreshed"
    REVOCATION_REQUESTED = "revoke_asked"
    REVOCATION_ENDED = "revocation_tried"
    PROVIDER_CHANGED = "provider_changed"
    CONSENT_NOT_ENDED = "consent_stands"
    REVOKED_AT_PROVIDER = "revoked_elsewhere"
    LATE_TOKENS_RECEIVED = "answer_came_late"
    LATE_VERIFICATION_ENDED = "late_answer_tried"
    ACCOUNT_LOOKUP_ENDED = "looked_up"
    ACCOUNT_CHOSEN = "choice_made"


class RefreshReason(StrEnum):
    """Why somebody wants a newer grant."""

    COMMAND = ""  # because they say so
    DUE = "due"  # it looks due by their clock
    UNAUTHORIZED = "unauthorized"  # its token was refused, though it should be good


class LifecycleEvent(Message):
    """One event with what it brought."""

    kind: EventKind
    context: RequestContext
    consent_id: ConsentId | None = None
    attempt_id: AttemptId | None = None
    seen_generation: int | None = None
    reason: str | None = None
    reply_to: str | None = None
    refresh_reason: RefreshReason = RefreshReason.COMMAND
    result: GrantResult | None = None
    revocation: RevocationResult | None = None


class ConnectionStart(Message):
    """The input of a connection's run; continue-as-new hands the next run the life so far."""

    tenant: Tenant
    connection_id: ConnectionId
    integration_id: IntegrationId
    integration: str
    provider: str
    subject_hash: str  # keyed; the subject itself is not in any index of Temporal
    rules: int
    life: ConnectionState
    context: RequestContext
    waiting: tuple["LifecycleEvent", ...] = ()  # signals that the previous run did not get to


class ConnectionEnded(Message):
    """The result of a connection's workflow."""

    state: LifecycleState
    revocation: RevocationOutcome | None = None
    generations: int


class ConsentGranted(Message):
    consent_id: ConsentId
    context: RequestContext


class ConsentDenied(Message):
    consent_id: ConsentId
    context: RequestContext


class Revoke(Message):
    reason: str
    context: RequestContext


class Rotate(Message):
    """Refresh now. With `seen_generation` it is about that grant: one that is newer is left alone."""

    reason: str
    context: RequestContext
    seen_generation: int | None = None


class RequestToken(Message):
    """`app` asks for a fresh token; `token_ready` goes to the workflow `reply_to`."""

    app: str
    reply_to: str
    context: RequestContext


def is_valid_workflow_id(value: str) -> bool:
    """True when Temporal takes `value` as a workflow id. One that it doesn't fails the whole task."""
    return 0 < len(value.encode()) <= _LONGEST_ID


class TokenReady(Message):
    """The answer to `request_token`: facts, and a code instead when there is no token.

    `again`: the subject or an admin has to act; another answer comes when there is a token.
    """

    connection_id: ConnectionId
    generation: int
    expires_at: datetime | None = None
    problem: ErrorCode | None = None
    again: bool = False


class ProviderChanged(Message):
    version: int
    context: RequestContext


class EnsureFresh(Message):
    """Make the grant newer than `seen_generation`; done at once when it already is."""

    seen_generation: int
    context: RequestContext
    refresh_reason: RefreshReason = RefreshReason.COMMAND


class EnsureFreshResult(Message):
    """What `ensure_fresh` answers: the generation now, or why there is none.

    `declined`: nothing is wrong, and nothing was done either; ask again after `retry_after`.
    """

    generation: int
    problem: ErrorCode | None = None
    retry_after: float | None = None
    declined: bool = False


class Reauthorize(Message):
    consent_id: ConsentId
    context: RequestContext


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
    failed: ErrorCode | None = None  # what the last try to revoke met
    failing_since: datetime | None = None  # when the first of these tries failed
    reply_later: tuple[str, ...] = ()  # see `Life`: a run that follows by hand goes on with them
