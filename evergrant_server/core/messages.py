"""Everything that crosses Temporal: names, inputs, signals, updates, results. No secrets.

All a caller may know of the connection workflow is here: task queue, signal, update and
query names, and the shapes of what they carry.
"""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.activity_messages import ActivityName as ActivityName
from evergrant_server.core.activity_messages import AnnounceExpiry as AnnounceExpiry
from evergrant_server.core.activity_messages import AskRevocation as AskRevocation
from evergrant_server.core.activity_messages import Call as Call
from evergrant_server.core.activity_messages import Discover as Discover
from evergrant_server.core.activity_messages import Discovered as Discovered
from evergrant_server.core.activity_messages import EndConsent as EndConsent
from evergrant_server.core.activity_messages import ExchangeCode as ExchangeCode
from evergrant_server.core.activity_messages import GrantNews as GrantNews
from evergrant_server.core.activity_messages import MintGrant as MintGrant
from evergrant_server.core.activity_messages import RefreshGrant as RefreshGrant
from evergrant_server.core.activity_messages import RevocationNews as RevocationNews
from evergrant_server.core.activity_messages import RevokeGrant as RevokeGrant
from evergrant_server.core.activity_messages import RunEnds as RunEnds
from evergrant_server.core.connection import Revocation, State
from evergrant_server.core.errors import Code, Repairer
from evergrant_server.core.export_messages import DropExport as DropExport
from evergrant_server.core.export_messages import ExportCall as ExportCall
from evergrant_server.core.export_messages import Exported as Exported
from evergrant_server.core.export_messages import ExportPage as ExportPage
from evergrant_server.core.export_messages import ExportProgress as ExportProgress
from evergrant_server.core.export_messages import ExportStart as ExportStart
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import AttemptId, ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.message import Asked as Asked
from evergrant_server.core.message import Message
from evergrant_server.core.message import Provenance as Provenance

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


class Life(Message):
    """What the workflow knows of its connection: facts that decide the next step."""

    state: State = State.PENDING_CONSENT
    generation: int = 0
    obtained_at: datetime | None = None
    expires_at: datetime | None = None  # None while active: the token never expires
    refreshable: bool = False
    idle_s: float | None = None  # the refresh token dies after this many idle seconds
    policy: str = "adaptive"
    consent_deadline: datetime | None = None
    leased: bool = True  # False: this generation was looked at and nobody had leased it
    failures: int = 0  # refreshes or revocations failed in a row
    failed: Code | None = None  # what the last of these revocations met
    failing_since: datetime | None = None  # the first of them
    retry_at: datetime | None = None
    reason: Code | None = None
    refusal: Code | None = None  # why the last thing that was asked could not be done
    revoke_reason: str | None = None
    revocation: Revocation | None = None
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


class Event(StrEnum):
    """What can happen to a connection's workflow: signals, updates, timers, activity results."""

    CONSENT_GRANTED = "consent_granted"
    CONSENT_DENIED = "consent_denied"
    CODE_EXCHANGED = "code_exchanged"
    GRANT_MINTED = "grant_minted"
    FRESHNESS_ASKED = "freshness_asked"
    TOKEN_REQUESTED = "token_requested"
    ROTATE_ASKED = "rotate_asked"
    REAUTHORIZE_ASKED = "reauthorize_asked"
    TIME_CAME = "time_came"
    GRANT_REFRESHED = "grant_refreshed"
    REVOKE_ASKED = "revoke_asked"
    REVOCATION_TRIED = "revocation_tried"
    PROVIDER_CHANGED = "provider_changed"
    CONSENT_STANDS = "consent_stands"
    REVOKED_ELSEWHERE = "revoked_elsewhere"
    ANSWER_CAME_LATE = "answer_came_late"
    LATE_ANSWER_TRIED = "late_answer_tried"
    LOOKED_UP = "looked_up"
    CHOICE_MADE = "choice_made"


class Wish(StrEnum):
    """Why somebody wants a newer grant."""

    COMMAND = ""  # because they say so
    DUE = "due"  # it looks due by their clock
    UNAUTHORIZED = "unauthorized"  # its token was refused, though it should be good


class Happening(Message):
    """One event with what it brought."""

    event: Event
    asked: Asked
    consent_id: ConsentId | None = None
    attempt_id: AttemptId | None = None
    seen_generation: int | None = None
    reason: str | None = None
    reply_to: str | None = None
    wish: Wish = Wish.COMMAND
    news: GrantNews | None = None
    revocation: RevocationNews | None = None


class ConnectionStart(Message):
    """The input of a connection's run; continue-as-new hands the next run the life so far."""

    tenant: Tenant
    connection_id: ConnectionId
    integration_id: IntegrationId
    integration: str
    provider: str
    subject_hash: str  # keyed; the subject itself is not in any index of Temporal
    rules: int
    life: Life
    asked: Asked
    waiting: tuple["Happening", ...] = ()  # signals that the previous run did not get to


class Ended(Message):
    """The result of a connection's workflow."""

    state: State
    revocation: Revocation | None = None
    generations: int


class ConsentGranted(Message):
    attempt_id: ConsentId
    asked: Asked


class ConsentDenied(Message):
    attempt_id: ConsentId
    asked: Asked


class Revoke(Message):
    reason: str
    asked: Asked


class Rotate(Message):
    """Refresh now. With `seen_generation` it is about that grant: one that is newer is left alone."""

    reason: str
    asked: Asked
    seen_generation: int | None = None


class RequestToken(Message):
    """`app` asks for a fresh token; `token_ready` goes to the workflow `reply_to`."""

    app: str
    reply_to: str
    asked: Asked


def is_workflow_id(value: str) -> bool:
    """True when Temporal takes `value` as a workflow id. One that it doesn't fails the whole task."""
    return 0 < len(value.encode()) <= _LONGEST_ID


class TokenReady(Message):
    """The answer to `request_token`: facts, and a code instead when there is no token.

    `again`: the subject or an admin has to act; another answer comes when there is a token.
    """

    connection_id: ConnectionId
    generation: int
    expires_at: datetime | None = None
    problem: Code | None = None
    again: bool = False


class ProviderChanged(Message):
    version: int
    asked: Asked


class EnsureFresh(Message):
    """Make the grant newer than `seen_generation`; done at once when it already is."""

    seen_generation: int
    asked: Asked
    wish: Wish = Wish.COMMAND


class Freshness(Message):
    """What `ensure_fresh` answers: the generation now, or why there is none.

    `declined`: nothing is wrong, and nothing was done either; ask again after `retry_after`.
    """

    generation: int
    problem: Code | None = None
    retry_after: float | None = None
    declined: bool = False


class Reauthorize(Message):
    consent_id: ConsentId
    asked: Asked


class Description(Message):
    """What the `describe` query answers."""

    connection_id: ConnectionId
    state: State
    generation: int
    expires_at: datetime | None
    next_step: str
    next_at: datetime | None
    reason: Code | None
    repairer: Repairer | None
    failures: int
    failed: Code | None = None  # what the last try to revoke met
    failing_since: datetime | None = None  # when the first of these tries failed
    reply_later: tuple[str, ...] = ()  # see `Life`: a run that follows by hand goes on with them
