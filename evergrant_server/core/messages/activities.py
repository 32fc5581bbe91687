"""What activities are told and what they answer, as it crosses Temporal. No secrets."""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestContext


class ActivityName(StrEnum):
    """The side effects a workflow can ask for, as they read in the Temporal UI."""

    EXCHANGE_CODE = "exchange_code"
    REQUEST_CLIENT_GRANT = "mint_grant"
    POLL_DEVICE_TOKEN = "poll_device"
    REFRESH_GRANT = "refresh_grant"
    END_CONSENT = "end_consent"
    BEGIN_REVOCATION = "ask_revocation"
    REVOKE_GRANT = "revoke_grant"
    EXPORT_RUN_HISTORY = "run_ends"
    DISCOVER_ENDPOINTS = "discover_endpoints"
    REREAD_METADATA = "reread_metadata"
    ANNOUNCE_EXPIRY = "announce_expiry"
    VERIFY_LATE_TOKENS = "verify_late_answer"
    LOOK_UP_ACCOUNTS = "look_up_accounts"
    EXPORT_PAGE = "export_page"
    DELETE_EXPORT = "drop_export"
    RECONCILE = "reconcile"
    DELIVER_WEBHOOKS = "deliver_due"
    CHECK_DEFINITION = "check_definition"
    APPLY_DEFINITION_DECISION = "decide_definition"
    EVALUATE_ROLLOUT = "watch_definition"


class ConnectionCall(Message):
    """What every activity of a connection is told."""

    tenant: Tenant
    connection_id: ConnectionId
    context: RequestContext
    provenance: Provenance


class ExchangeCode(ConnectionCall):
    consent_id: ConsentId
    generation: int = 0  # the newest that the workflow knows


class RequestFirstTokens(ConnectionCall):
    """Make the first tokens from what we hold ourselves. The consent says who asked for what."""

    consent_id: ConsentId
    generation: int = 0  # the newest that the workflow knows


class RefreshGrant(ConnectionCall):
    """Refresh from `generation`. `only_if_leased`: do nothing when nobody leased it. `token_over`: the
    access token has ended or was refused, whatever the worker's clock says."""

    generation: int
    only_if_leased: bool = False
    token_over: bool = False


class AnnounceExpiry(ConnectionCall):
    """Record that the grant ends in `days` days, at `ends_at`, unless the subject consents again."""

    days: int
    ends_at: datetime


class EndConsent(ConnectionCall):
    consent_id: ConsentId | None = None  # None: the deadline passed
    denied: bool


class BeginRevocation(ConnectionCall):
    """Write `revoking` to the store, for a revocation that began in Temporal."""

    reason: str


class RevokeGrant(ConnectionCall):
    """Tell the provider, then write `revoked`."""


class ExportRunHistory(ConnectionCall):
    """The run is about to close or continue as new: its history must be exported."""


class DiscoverEndpoints(Message):
    tenant: Tenant
    integration_id: IntegrationId
    context: RequestContext


class DiscoveryResult(Message):
    failure: ErrorCode | None = None
    detail: str = ""


class GrantResult(Message):
    """What an exchange or a refresh did to the grant: facts of the new one, or a failure."""

    attempt_id: AttemptId | None = None
    consent_id: ConsentId | None = None
    state: LifecycleState | None = None  # what the store says now
    generation: int | None = None
    obtained_at: datetime | None = None
    expires_at: datetime | None = None
    refreshable: bool = False
    idle_s: float | None = None
    refresh_expires_at: datetime | None = None
    margin_s: float | None = None
    min_age_s: float | None = None
    interim: bool = False
    ends_together: bool = False
    announce_days: tuple[int, ...] | None = None
    not_leased: bool = False
    failure: ErrorCode | None = None
    retry_after: float | None = None  # seconds
    client_refused: bool = False  # the provider refused our secret, and didn't look at the grant
    device_poll: DevicePoll | None = None  # a device code: neither tokens nor an end yet
    interval_s: float | None = None  # how often the provider wants to be asked about it
    consent_over: bool = False  # the consent has ended: asking again brings nothing
    unknown_error: bool = False  # the provider answered this grant, with an error that nobody knows
    used_previous_definition: bool = (
        False  # a staged definition couldn't read the answer, the one before it could
    )
    look_up: bool = False  # the grant is there; which accounts it reaches is to be asked
    choosing: bool = False  # somebody has to choose one
    next_late_attempt: AttemptId | None = None  # a late answer is done with, and this one is kept and untried


class RevocationResult(Message):
    revocation: RevocationOutcome | None = None
    failure: ErrorCode | None = None
    retry_after: float | None = None
