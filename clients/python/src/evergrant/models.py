"""What the clients return: plain values. The ones that hold a secret leave it out of `repr`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from evergrant.errors import ReconnectNeeded


@dataclass(frozen=True, slots=True)
class ConsentRequired:
    """The subject has to open `connect_url`: there is no grant, or it lacks `missing_scopes`.

    The link ends at a page with the code for `Evergrant.confirm`; a web app uses `connect` with `return_to`
    instead, or `evergrant.web`. It is for the subject alone, so `repr` leaves it out. It expires at
    `expires_at`, None when the server doesn't say.
    """

    connect_url: str = field(repr=False)
    connection_id: str
    expires_at: datetime | None
    missing_scopes: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name == "access_token":
                raise AttributeError(
                    "ConsentRequired has no access_token: the subject has to consent first, at connect_url. "
                    "Tell the two answers apart: match, or isinstance(answer, Lease)"
                )
            raise AttributeError(f"'ConsentRequired' object has no attribute {name!r}")

    def as_error(self) -> ReconnectNeeded:
        """The same answer as an exception. Its message has no link."""
        wider = f" to {' '.join(self.missing_scopes)}" if self.missing_scopes else ""
        return ReconnectNeeded(
            f"{self.connection_id} waits for its subject's consent{wider}",
            code="scope_not_granted" if self.missing_scopes else None,
            context={"connection_id": self.connection_id, "connect_url": self.connect_url},
        )


class State(StrEnum):
    """The state of a connection."""

    PENDING_CONSENT = "pending_consent"
    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    REVOKING = "revoking"
    REVOKED = "revoked"
    CONSENT_EXPIRED = "consent_expired"
    DENIED = "denied"

    @property
    def final(self) -> bool:
        """Whether the connection has ended; a new consent is then a new connection."""
        return self in (State.REVOKED, State.CONSENT_EXPIRED, State.DENIED)


@dataclass(frozen=True, slots=True)
class Connection:
    """One subject's grant at one integration. Holds no token: tokens come with a lease.

    `reason` is a failure code and `repairer` says who has to act; both are None in normal operation.
    `expires_at` is the access token's; in the answer to `connect` it is the connect link's.
    `connect_url` and `connect_expires_at` are set after `connect` and `reauthorize`.
    `metadata` are facts that came with the grant, such as the account's id. `choices` are the accounts
    it reaches; with the reason `choice_required` one of them has to be chosen first. `consented_with` is
    the connection whose consents bring a further token slot's grants. `revoking` is set until the
    provider has confirmed a revocation. `provider_said` explains a failure, to an admin.
    `expected_account` names the claims by which the app said which account it expects.
    `live` is the workflow's description, if requested; `differs` names the members in which it differs.
    """

    id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: State
    generation: int
    scopes: tuple[str, ...]
    expires_at: datetime | None
    reason: str | None
    repairer: str | None
    created_at: datetime
    changed_at: datetime
    connect_url: str | None = field(default=None, repr=False)
    connect_expires_at: datetime | None = None
    live: "LiveStatus | None" = None
    differs: tuple[str, ...] = ()
    flow: str = "authorization_code"
    device: "DeviceCode | None" = None
    revoking: "RevocationProgress | None" = None
    provider_said: "ProviderSaid | None" = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    api_base_url: str | None = None
    choice: str | None = None
    choices: "tuple[AccountChoice, ...]" = ()
    consented_with: str | None = None
    expected_account: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """One account that a grant reaches. `metadata` becomes the connection's when it is chosen."""

    id: str
    label: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """The device flow (RFC 8628): the subject types `user_code` in at `verification_uri`."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ProviderSaid:
    """What the provider said about the newest failure, cleaned; shown to admins.

    `reference` is the one of the subject's page. `unauthenticated`: it came by a browser, in a callback
    that was refused.
    """

    at: datetime
    reason: str | None
    reference: str | None
    status: int | None
    error: str | None
    description: str | None
    unauthenticated: bool = False


@dataclass(frozen=True, slots=True)
class RevocationProgress:
    """How far a revocation is. `failure` is the failure code of the last attempt, made at `failed_at`."""

    since: datetime | None
    failure: str | None
    failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """The connection as its workflow describes it. `next_step` is text for people."""

    state: State
    generation: int
    expires_at: datetime | None
    reason: str | None
    repairer: str | None
    failures: int
    next_step: str
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One audit record. `seq` is gapless within its shard.

    `workflow_run_id` and `workflow_event_id` name the history event that decided it, None for a
    decision of the API.
    """

    seq: int
    shard: str
    at: datetime
    action: str
    object: str
    by: str
    trace_id: str
    detail: Mapping[str, Any]
    workflow_run_id: str | None
    workflow_event_id: int | None


@dataclass(frozen=True, slots=True)
class Provider:
    """An entry of the catalogue; `facts` holds all members of the server's answer."""

    name: str
    facts: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class App:
    """A consumer that authenticates to Evergrant. `lease_limit` is leases in a minute, None the server's.

    An agent has a `sponsor` who answers for it, a `purpose`, and gets nothing from `ends_at` on.
    """

    id: str
    name: str
    disabled: bool
    created_at: datetime
    return_to: tuple[str, ...] = ()
    lease_limit: int | None = None
    sponsor: str | None = None
    purpose: str = ""
    ends_at: datetime | None = None
