"""What the clients return. Plain values; the two that hold a secret don't show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn, SupportsIndex, final

from evergrant.errors import ReconnectNeeded


class LeaseLeak(TypeError):
    """Something tried to pickle, copy or serialise a lease."""


@final
class Lease:
    """An access token with its real expiry.

    `expires_at` is aware, None for a token that never expires. `generation` numbers the grant
    it was taken from. Not a dataclass, and without a `__dict__`: `dataclasses.asdict`, `vars`,
    json, pydantic and Temporal's converters would otherwise write the token out.
    """

    __slots__ = ("access_token", "connection_id", "expires_at", "generation", "scopes", "token_type")

    access_token: str
    token_type: str
    expires_at: datetime | None
    scopes: tuple[str, ...]
    generation: int
    connection_id: str

    def __init__(
        self,
        access_token: str,
        *,
        token_type: str,
        expires_at: datetime | None,
        scopes: tuple[str, ...],
        generation: int,
        connection_id: str,
    ) -> None:
        write = object.__setattr__
        write(self, "access_token", access_token)
        write(self, "token_type", token_type)
        write(self, "expires_at", expires_at)
        write(self, "scopes", scopes)
        write(self, "generation", generation)
        write(self, "connection_id", connection_id)

    def __repr__(self) -> str:
        until = self.expires_at.isoformat() if self.expires_at else "never"
        return (
            f"Lease(access_token=***, connection_id={self.connection_id!r}, "
            f"generation={self.generation}, expires_at={until})"
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a lease can't be changed; take a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a lease can't be changed; take a new one")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise LeaseLeak("a lease is never pickled or copied: take one where the token is used")

    def __getstate__(self) -> NoReturn:
        raise LeaseLeak("a lease is never pickled or copied: take one where the token is used")


@dataclass(frozen=True, slots=True)
class Proof:
    """What goes along as the `DPoP` header of one request (RFC 9449), with the token of `generation`.

    It works once, for `htu` and the method it was asked for.
    """

    proof: str = field(repr=False)
    htu: str
    generation: int
    expires_at: datetime | None
    connection_id: str


@dataclass(frozen=True, slots=True)
class ConsentRequired:
    """There is no grant yet: the subject has to open `connect_url`.

    The link is for the subject alone (whoever opens it can consent in their place), so `repr`
    leaves it out. `expires_at` is when it stops working, None when the server doesn't say.
    """

    connect_url: str = field(repr=False)
    connection_id: str
    expires_at: datetime | None

    def as_error(self) -> ReconnectNeeded:
        """The same answer for code that wants a token or an exception. Its message has no link."""
        return ReconnectNeeded(
            f"{self.connection_id} waits for its subject's consent",
            context={"connection_id": self.connection_id, "connect_url": self.connect_url},
        )


class State(StrEnum):
    """Where a connection is in its life."""

    PENDING_CONSENT = "pending_consent"
    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    REVOKING = "revoking"
    REVOKED = "revoked"
    CONSENT_EXPIRED = "consent_expired"
    DENIED = "denied"

    @property
    def final(self) -> bool:
        """Nothing leaves this state; a new connection has to be started."""
        return self in (State.REVOKED, State.CONSENT_EXPIRED, State.DENIED)


@dataclass(frozen=True, slots=True)
class Connection:
    """One subject's grant at one integration. No token: those come with a lease.

    `reason` is a failure code and `repairer` who has to act, both None while all is well.
    `expires_at` is the access token's; in the answer to `connect` it is the link's, as the server
    says it. `connect_url` and `connect_expires_at` are there after `connect` and `reauthorize`.
    `metadata` are facts that came with the grant: which account it is, where its API lives. `choices`
    are the accounts it reaches; with the reason `choice_required` one of them has to be chosen first.
    `consented_with` is the connection whose consents bring this one's grants, for a further chain of tokens.
    `revoking` is there while the provider hasn't confirmed a revocation yet.
    `live` is there when it was asked for and the workflow answered; `differs` names the members
    that it says otherwise.
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
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    api_base_url: str | None = None
    choice: str | None = None
    choices: "tuple[AccountChoice, ...]" = ()
    consented_with: str | None = None


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """One account that a grant reaches. `metadata` becomes the connection's when it is chosen."""

    id: str
    label: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What the subject does in the device flow: type `user_code` in at `verification_uri`."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RevocationProgress:
    """How far a revocation is. `failure` is the code that the last try met, at `failed_at`."""

    since: datetime | None
    failure: str | None
    failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What the connection's workflow says of itself. `next_step` is for people."""

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
    """One audit record. `seq` is gapless within its lane.

    `workflow_run_id` and `workflow_event_id` name the history event that decided it, None for
    what the API decided by itself.
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
    """An entry of the catalogue; `facts` is all the server says of it."""

    name: str
    facts: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class App:
    """A consumer that authenticates to Evergrant."""

    id: str
    name: str
    disabled: bool
    created_at: datetime
