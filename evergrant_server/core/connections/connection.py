"""A connection: one subject's grant at one integration, and the only table of its states."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import AccountOption, FollowUp, matching_option
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AppId, ConnectionId, IncidentId, IntegrationId, TenantRow


class LifecycleState(StrEnum):
    """The state of a connection. "Refreshing" is not a state: it is an open attempt."""

    PENDING_CONSENT = "pending_consent"
    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    REVOKING = "revoking"
    REVOKED = "revoked"
    CONSENT_EXPIRED = "consent_expired"
    DENIED = "denied"

    @property
    def is_final(self) -> bool:
        """No event leaves a final state; the workflow of such a connection has ended."""
        return self in (LifecycleState.REVOKED, LifecycleState.CONSENT_EXPIRED, LifecycleState.DENIED)


class StateChange(StrEnum):
    """What moves a connection from one state to another."""

    GRANTED = "granted"  # a consent's code was exchanged for tokens
    CONSENT_DENIED = "consent_denied"
    CONSENT_EXPIRED = "consent_expired"
    REFRESHED = "refreshed"
    REJECTED = "rejected"  # the provider refused the refresh token for good
    REVOCATION_REQUESTED = "revocation_requested"
    REVOCATION_ENDED = "revocation_ended"  # confirmed, or declared impossible


class RevocationOutcome(StrEnum):
    """How `revoked` was reached; shown with the state."""

    CONFIRMED = "confirmed"  # the provider answered as RFC 7009 section 2.2 asks
    # what is held is revoked; a request whose answer was lost may have made tokens that live on there
    UNKNOWN = "unknown"
    ACCESS_TOKEN_ONLY = "access_token_only"  # it revokes no refresh token, which may stay valid there
    NOT_SUPPORTED = "not_supported"  # the provider has no revocation endpoint, or it revokes none of ours
    NOTHING_HELD = "nothing_held"  # no token was ever installed


STATE_CHANGES: dict[tuple[LifecycleState, StateChange], LifecycleState] = {
    (LifecycleState.PENDING_CONSENT, StateChange.GRANTED): LifecycleState.ACTIVE,
    (LifecycleState.PENDING_CONSENT, StateChange.CONSENT_DENIED): LifecycleState.DENIED,
    (LifecycleState.PENDING_CONSENT, StateChange.CONSENT_EXPIRED): LifecycleState.CONSENT_EXPIRED,
    (LifecycleState.PENDING_CONSENT, StateChange.REVOCATION_REQUESTED): LifecycleState.REVOKING,
    (LifecycleState.ACTIVE, StateChange.GRANTED): LifecycleState.ACTIVE,
    (LifecycleState.ACTIVE, StateChange.REFRESHED): LifecycleState.ACTIVE,
    (LifecycleState.ACTIVE, StateChange.REJECTED): LifecycleState.NEEDS_REAUTH,
    (LifecycleState.ACTIVE, StateChange.REVOCATION_REQUESTED): LifecycleState.REVOKING,
    (LifecycleState.NEEDS_REAUTH, StateChange.GRANTED): LifecycleState.ACTIVE,
    (LifecycleState.NEEDS_REAUTH, StateChange.REJECTED): LifecycleState.NEEDS_REAUTH,
    (LifecycleState.NEEDS_REAUTH, StateChange.REVOCATION_REQUESTED): LifecycleState.REVOKING,
    # A token that lands while revoking is kept only to be revoked.
    (LifecycleState.REVOKING, StateChange.GRANTED): LifecycleState.REVOKING,
    (LifecycleState.REVOKING, StateChange.REFRESHED): LifecycleState.REVOKING,
    (LifecycleState.REVOKING, StateChange.REJECTED): LifecycleState.REVOKING,
    (LifecycleState.REVOKING, StateChange.REVOCATION_REQUESTED): LifecycleState.REVOKING,
    (LifecycleState.REVOKING, StateChange.REVOCATION_ENDED): LifecycleState.REVOKED,
}


_FAILURES_UNTIL_FAILING = 3


class IllegalStateChange(ValueError):
    """A change that the table doesn't have: a bug, never caused by a provider."""


def state_after(state: LifecycleState, move: StateChange) -> LifecycleState:
    """The state after `move`. Raises IllegalStateChange when the table has no such row."""
    try:
        return STATE_CHANGES[(state, move)]
    except KeyError:
        raise IllegalStateChange(f"a connection that is {state} can't be {move}") from None


class Connection(TenantRow):
    """The row that a connection is. Verbs return the next row; `revision` is the store's business."""

    id: ConnectionId
    integration_id: IntegrationId
    integration: str
    provider: str
    subject: str
    label: str = "default"
    state: LifecycleState = LifecycleState.PENDING_CONSENT
    generation: int = 0
    requested_scopes: tuple[str, ...] = ()
    default_scopes: bool = False  # they are the integration's: while pending, each new link has the newest
    reason: ErrorCode | None = None  # why a person has to act
    revocation: RevocationOutcome | None = None
    revoke_reason: str | None = None
    refresh_policy: str = "adaptive"
    flow: Flow = Flow.AUTHORIZATION_CODE
    target: TokenTarget = TokenTarget()
    source: ConnectionId | None = None  # its token is exchanged for this one's (RFC 8693)
    source_app: AppId | None = None  # the app must still be permitted to lease the source
    created_at: datetime
    changed_at: datetime
    consent_deadline: datetime
    failures: int = 0  # refreshes that failed in a row
    last_failure: ErrorCode | None = None
    last_failed_at: datetime | None = None
    failing_since: datetime | None = None  # set once failing refreshes were published
    follow_up: FollowUp | None = None
    choice: str | None = None  # the account that was requested or chosen
    # requested for further token slots, which the same consent fills
    slot_scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    consented_with: ConnectionId | None = None  # the consents of that connection fill this one's token slot
    expected_account: dict[str, str] | None = None  # by claim, keyed hashes of what the app expects
    reported_generation: int | None = None  # whose access token the provider refuses, say an app or a worker
    held_by: IncidentId | None = None  # the offboarding that has stopped it, and may put it back

    def granted(self, at: datetime, known: int = 0) -> "Connection":
        """The row after a consent with a new grant, which ends any failure.

        `known` is the newest generation that the workflow knows: a row from an older backup goes
        beyond it, or the new grant would look like one that the backup lost.
        """
        return self._with_new_grant(StateChange.GRANTED, at, max(self.generation, known) + 1)

    def waiting_for_grant(self, reason: ErrorCode, at: datetime) -> "Connection":
        """Why there is no grant yet; cleared by the first one."""
        if self.state is not LifecycleState.PENDING_CONSENT:
            raise IllegalStateChange(f"a connection that is {self.state} doesn't wait for its first grant")
        return self.__replace__(reason=reason, changed_at=at)

    def accounts_found(
        self, options: tuple[AccountOption, ...], at: datetime
    ) -> tuple["Connection", AccountOption | None]:
        """The accounts are known; the second value is None while one has to be chosen."""
        option = matching_option(options, self.choice)
        if option is not None:
            return self.account_chosen(option, at), option
        return self.__replace__(follow_up=FollowUp.CHOOSING, changed_at=at), None

    def account_chosen(self, option: AccountOption, at: datetime) -> "Connection":
        return self.__replace__(follow_up=None, choice=option.id, changed_at=at)

    def label_of_slot(self, slot: str) -> str:
        """The label of the connection that holds a further token slot of this one's consents."""
        return slot if self.label == "default" != slot else f"{self.label}:{slot}"

    def with_source_app(self, app: AppId) -> "Connection":
        """From here on its source's token is exchanged on behalf of `app`."""
        return self.__replace__(source_app=app)

    def handed_over(self, subject: str, at: datetime) -> "Connection":
        """From here on it is another subject's. Its grant stays until that one consents."""
        return self.__replace__(subject=subject, changed_at=at)

    @property
    def may_change_client(self) -> bool:
        """Whether its next consent may be given to another client of its integration: its grant is its own,
        and of a browser's consent."""
        alone = self.consented_with is None and not self.slot_scopes
        return alone and self.flow is Flow.AUTHORIZATION_CODE

    def of_client(self, integration: IntegrationId, expected: dict[str, str] | None) -> "Connection":
        """With a grant that another client has got; `expected`: hashes of what the app expects, made anew."""
        return self.__replace__(integration_id=integration, expected_account=expected)

    @property
    def has_ended(self) -> bool:
        """It is being revoked, or nothing leads out of its state."""
        return self.state is LifecycleState.REVOKING or self.state.is_final

    @property
    def is_unwell(self) -> bool:
        """Its failure was published, so its recovery is published too."""
        return self.failing_since is not None or self.state is LifecycleState.NEEDS_REAUTH

    def refreshed(self, at: datetime) -> "Connection":
        return self._with_new_grant(StateChange.REFRESHED, at, self.generation + 1)

    def refresh_failed(self, code: ErrorCode, at: datetime, *, token_over: bool) -> "Connection":
        """It is failing from the third failure in a row, or once its access token has ended."""
        failures = self.failures + 1
        failing = failures >= _FAILURES_UNTIL_FAILING or token_over
        return self.__replace__(
            failures=failures,
            last_failure=code,
            last_failed_at=at,
            failing_since=self.failing_since or (at if failing else None),
        )

    def token_reported(self) -> "Connection":
        """The row once an app, or a worker that has asked, says that the provider refuses the token.

        A refused refresh confirms an app's word.
        """
        return self.__replace__(reported_generation=self.generation)

    def rejected(self, reason: ErrorCode, at: datetime) -> "Connection":
        return self._moved(StateChange.REJECTED, at).__replace__(reason=reason)

    def consent_denied(self, at: datetime) -> "Connection":
        return self._moved(StateChange.CONSENT_DENIED, at).__replace__(reason=ErrorCode.CONSENT_DENIED)

    def consent_expired(self, at: datetime) -> "Connection":
        return self._moved(StateChange.CONSENT_EXPIRED, at).__replace__(reason=ErrorCode.CONSENT_EXPIRED)

    def revocation_requested(self, reason: str, at: datetime) -> "Connection":
        """No lease is issued once this is committed; the first reason is kept."""
        return self._moved(StateChange.REVOCATION_REQUESTED, at).__replace__(
            reason=ErrorCode.CONNECTION_REVOKED, revoke_reason=self.revoke_reason or reason
        )

    def revocation_ended(self, how: RevocationOutcome, at: datetime) -> "Connection":
        return self._moved(StateChange.REVOCATION_ENDED, at).__replace__(revocation=how)

    def _with_new_grant(self, move: StateChange, at: datetime, generation: int) -> "Connection":
        """A new grant ends any failure; it doesn't undo a revocation."""
        return self._moved(move, at).__replace__(
            generation=generation,
            reported_generation=None,
            reason=self.reason if self.state is LifecycleState.REVOKING else None,
            failures=0,
            last_failure=None,
            last_failed_at=None,
            failing_since=None,
        )

    def _moved(self, move: StateChange, at: datetime) -> "Connection":
        return self.__replace__(state=state_after(self.state, move), changed_at=at)


def is_leasable(
    state: LifecycleState,
    reason: ErrorCode | None,
    follow_up: FollowUp | None = None,
    *,
    reported: bool = False,
    held: bool = False,
) -> bool:
    """May a valid token be leased? Also while a new consent is awaited; not once the
    provider or a campaign has ended the grant, nor while the account is still to be chosen.

    `reported`: an app says that the provider's API refuses the token. It counts once the grant can't
    be refreshed any more; by itself it proves nothing. `held`: its subject leaves.
    """
    has_grant = state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
    ended = reason in (ErrorCode.GRANT_REVOKED_ELSEWHERE, ErrorCode.RECONSENT_REQUIRED)
    refused = reported and state is LifecycleState.NEEDS_REAUTH
    return has_grant and not ended and not refused and not held and follow_up is not FollowUp.CHOOSING
