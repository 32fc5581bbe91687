"""What the activities of a connection take and return. No secrets."""

from datetime import datetime

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class ConnectionCall(RequestMessage):
    """What every activity of a connection takes."""

    tenant: Tenant
    connection_id: ConnectionId
    integration_id: IntegrationId | None = None  # whose share of a worker's slots it takes
    provenance: Provenance


class ConsentCall(ConnectionCall):
    """What every activity that gets the first tokens of a consent takes."""

    consent_id: ConsentId
    generation: int  # the newest that the workflow knows


class ExchangeCode(ConsentCall):
    """Spend the authorization code of a consent (RFC 6749 section 4.1.3)."""


class RequestFirstTokens(ConsentCall):
    """Request the first tokens of a flow without a code: client grants and device codes."""


class RefreshGrant(ConnectionCall):
    """Refresh from `generation` (RFC 6749 section 6).

    `only_if_leased`: do nothing when no app has leased it. `token_over`: the access token has
    ended or was refused, even if the worker's clock says otherwise. `may_be_postponed`: no caller
    waits for it, and minutes don't matter to the grant. `scopes`: request an access token with these
    alone, beside the one that there is. `only_with_evidence`: the provider has refused it, and is asked
    again now only if that can tell whose turn it is.
    """

    generation: int
    only_if_leased: bool = False
    token_over: bool = False
    may_be_postponed: bool = False
    only_with_evidence: bool = False
    scopes: tuple[str, ...] = ()


class VerifyLateTokens(ConnectionCall):
    """Refresh with the late tokens' own refresh token; they are believed if that works."""

    attempt_id: AttemptId


class LookUpAccounts(ConnectionCall):
    """Ask the provider which accounts the grant reaches. Spends nothing."""

    generation: int


class AnnounceExpiry(ConnectionCall):
    """Record that the grant ends in `days` days, at `ends_at`, unless the subject consents again."""

    days: int
    ends_at: datetime
    silent_since: datetime | None = None  # the grant's moment, where `ends_at` follows from its silence


class EndConsent(ConnectionCall):
    """Write that the consent was denied, or that its deadline passed."""

    consent_id: ConsentId | None = None  # None: the deadline passed
    denied: bool
    deadline: datetime | None = None  # that passed; None: it can't be postponed (an earlier version asks)


class LapseConsent(ConnectionCall):
    """Destroy the code of a consent that its app didn't confirm in time, and reopen its link."""

    consent_id: ConsentId


class LapseResult(Message):
    """`confirm_by` is set when the app may still confirm the consent until then."""

    confirm_by: datetime | None = None


class BeginRevocation(ConnectionCall):
    """Write `revoking` to the store, for a revocation that began in Temporal."""

    reason: str


class RevokeGrant(ConnectionCall):
    """Revoke at the provider (RFC 7009 section 2), then write `revoked`."""


class RevokeReplacedGrants(ConnectionCall):
    """Revoke the grants that newer ones have replaced, as far as that ends no grant in use."""


class ExportRunHistory(ConnectionCall):
    """The run is about to close or continue as new: have its history exported."""


class GrantFacts(Message):
    """What a grant determines of its connection's next steps."""

    obtained_at: datetime | None = None
    expires_at: datetime | None = None  # None while active: the token never expires
    refreshable: bool = False
    refresh_token_idle_s: float | None = None  # the refresh token ends after this many idle seconds
    refresh_expires_at: datetime | None = None
    margin_s: float | None = None  # a refresh earlier before the expiry is refused
    min_age_s: float | None = None  # a refresh of a younger token is refused
    short_lived: bool = False  # this token is exchanged for a long-lived one at once
    ends_together: bool = False  # what a refresh is made from ends with the access token
    announce_days: tuple[int, ...] | None = None  # as set when the grant came; None: the rules' own
    choice_pending: bool = False  # the account is still to be chosen
    access_generation: int | None = None  # whose access token it has still; None: its own


class GrantResult(GrantFacts):
    """What a token request, a verification or a lookup did to the grant: its facts, or a failure."""

    attempt_id: AttemptId | None = None
    consent_id: ConsentId | None = None
    state: LifecycleState | None = None  # what the store says now
    generation: int | None = None
    not_leased: bool = False
    postponed_s: float | None = None  # nothing was sent, for the provider's limit: it comes again after this
    unchanged: bool = False  # no narrower token came of it, and the grant is what it was
    failure: ErrorCode | None = None
    retry_after: float | None = None  # seconds
    why_unsent: str | None = None  # what the operator has to allow, with its host: nothing was sent
    client_refused: bool = False  # the provider refused our client secret before it looked at the grant
    device_poll: DevicePoll | None = None  # the device code has neither tokens nor an end yet
    interval_s: float | None = None  # between two polls, as the provider says
    consent_deadline: datetime | None = None  # the store has a later one than the one that passed
    consent_over: bool = False  # the consent has ended: no further request can succeed
    unknown_error: bool = False  # the provider refused this grant by an error whose name isn't known
    answer_lost: bool = False  # the request may have been served, and no answer came
    undecided: bool = False  # nothing was sent: there is no evidence yet that would tell whose turn it is
    last_try: bool = False  # the refused tokens are kept as the late ones of `attempt_id`, for a last try
    account_lookup_needed: bool = False  # the grant is there; the accounts are still to be looked up
    next_late_attempt: AttemptId | None = None  # these are dropped; those of this attempt are untried


class RevocationResult(Message):
    revocation: RevocationOutcome | None = None
    failure: ErrorCode | None = None
    retry_after: float | None = None  # seconds


class RevokeReplacedStart(RequestMessage):
    """The input of the workflow that revokes a connection's replaced grants, and its signal."""

    tenant: Tenant
    connection_id: ConnectionId
    failures: int = 0  # in a row, of the run before


class ReplacedRevocationResult(Message):
    """Without a failure, none is left to revoke."""

    revoked: int = 0
    failure: ErrorCode | None = None
    retry_after: float | None = None  # seconds
