"""What callers are shown. No view has a member that could hold a secret, but the two named for it."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.access import (
    Action,
    App,
    AppKey,
    Integration,
    IntegrationState,
    Permit,
    RegistrationMethod,
)
from evergrant_server.core.audit import AuditRecord
from evergrant_server.core.connections.account import AccountOption, FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.connections.refresh_rules import RefreshRules
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.messages.connection import ConnectionDescription

ItemT = TypeVar("ItemT")


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Page(View, Generic[ItemT]):
    """One page of a list; `next_cursor` is null on the last."""

    items: list[ItemT]
    next_cursor: str | None = None


class LiveView(View):
    """What the workflow says of itself (the `describe` query)."""

    state: LifecycleState
    generation: int
    expires_at: datetime | None
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    next_step: str
    next_at: datetime | None
    failed: ErrorCode | None = None
    failing_since: datetime | None = None

    @classmethod
    def of(cls, said: ConnectionDescription) -> "LiveView":
        return cls(**said.model_dump(exclude={"connection_id", "reply_later"}))

    def differences_from(self, stored: "ConnectionView") -> tuple[str, ...]:
        """The members that the store says otherwise; an ended connection has no expiry in the store."""
        names = ("state", "generation", "reason") if stored.state.is_final else _COMPARED
        return tuple(name for name in names if getattr(self, name) != getattr(stored, name))


_COMPARED = ("state", "generation", "expires_at", "reason")


class DeviceView(View):
    """What the subject does in the device flow: type `user_code` in at `verification_uri`."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_at: datetime

    @classmethod
    def of(cls, device: DeviceCode) -> "DeviceView":
        return cls(**device.model_dump(include=set(cls.model_fields)))


class RevocationProgressView(View):
    """How far a revocation is that the provider hasn't confirmed. `failure` is what the last try met."""

    since: datetime | None
    failure: ErrorCode | None
    failed_at: datetime | None


class ConnectionView(View):
    """`expires_at` is the access token's; right after `POST /v1/connections` it is the link's.

    `metadata` are facts that came with the grant: which account it is, where its API lives. `choices` are
    the accounts that it reaches, where the provider is asked; with the reason `choice_required` no lease
    leaves before one is chosen.
    `consented_with` is the connection whose consents bring this one's grants, for a further chain of tokens.
    `revoking` is there while the provider hasn't confirmed a revocation yet.
    `failing_since` is set while refreshes keep failing; what it holds is valid until it expires.
    `live` (with the next attempt as `next_at`) and `differs` are null unless they were asked for
    and the workflow answered.
    """

    id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: LifecycleState
    generation: int
    scopes: tuple[str, ...]
    requested_scopes: tuple[str, ...]
    expires_at: datetime | None
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    last_failure: ErrorCode | None
    last_failed_at: datetime | None
    failing_since: datetime | None
    revocation: RevocationOutcome | None
    revoke_reason: str | None
    flow: Flow
    resources: tuple[str, ...] = ()
    audience: str | None = None
    metadata: dict[str, Any] = {}
    api_base_url: str | None = None
    choice: str | None = None
    choices: tuple[AccountOption, ...] = ()
    slot_scopes: dict[str, tuple[str, ...]] = {}
    consented_with: str | None = None
    created_at: datetime
    changed_at: datetime
    revision: int
    next_action: str | None = None
    next_at: datetime | None = None
    connect_url: str | None = None
    connect_expires_at: datetime | None = None
    device: DeviceView | None = None
    revoking: RevocationProgressView | None = None
    live: LiveView | None = None
    differs: tuple[str, ...] | None = None

    @classmethod
    def of(cls, connection: Connection, grant: Grant | None, **more: Any) -> "ConnectionView":
        hidden = {"tenant", "integration_id", "consent_deadline", "refresh_policy", "target", "follow_up"}
        chooses = connection.state is LifecycleState.ACTIVE and connection.follow_up is FollowUp.CHOOSING
        reason = connection.reason or (ErrorCode.CHOICE_REQUIRED if chooses else None)
        shown = connection.model_dump(exclude=hidden)
        held = grant if grant and not connection.state.is_final else None
        shown |= {
            **connection.target.model_dump(),
            "scopes": held.scopes if held else (),
            "expires_at": held.expires_at if held else None,
            "metadata": held.metadata if held else {},
            "choices": held.options if held else (),
            "reason": reason,
            "repairer": _repairer(reason or connection.last_failure),
        }
        return cls(**(shown | more))


def _repairer(why: ErrorCode | None) -> Repairer | None:
    return FAILURES[why].repairer if why else None


class IntegrationView(View):
    """Never the client secret or key: `has_client_secret`, `has_client_key` say whether there is one.

    In the overlap of a rotation `previous_secret_until` says how long the secret before it is
    tried as well; `secret_refused_at` that the provider takes that one, and refuses the new one.
    """

    id: str
    name: str
    provider: str
    client_id: str
    has_client_secret: bool
    has_client_key: bool
    issuer: str | None
    params: dict[str, str]
    client_auth: str | None
    default_scopes: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    refresh: RefreshRules
    dpop: bool | None
    state: IntegrationState
    problem: str | None
    previous_secret_until: datetime | None
    secret_refused_at: datetime | None
    registration: RegistrationMethod | None
    registration_url: str | None
    client_secret_expires_at: datetime | None
    client_certificate_expires_at: datetime | None
    metadata_read_at: datetime | None
    redirect_uri: str
    created_at: datetime
    changed_at: datetime
    revision: int

    @classmethod
    def of(
        cls, integration: Integration, *, redirect_uri: str, has_secret: bool, has_key: bool = False
    ) -> "IntegrationView":
        shown = integration.model_dump(
            exclude={"tenant", "endpoints", "registration_sent_at", "refresh_overrides"}
        )
        return cls(**shown, redirect_uri=redirect_uri, has_client_secret=has_secret, has_client_key=has_key)


class AppView(View):
    id: str
    name: str
    disabled: bool
    return_to: tuple[str, ...]
    created_at: datetime
    revision: int

    @classmethod
    def of(cls, app: App) -> "AppView":
        return cls(**app.model_dump(exclude={"tenant"}))


class KeyView(View):
    id: str
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: AppKey) -> "KeyView":
        return cls(id=key.id, created_at=key.created_at, revoked_at=key.revoked_at)


class NewKeyView(KeyView):
    """The one answer that shows an API key."""

    key: str


class PermitView(View):
    id: str
    name: str
    integration: str
    subjects: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    actions: tuple[Action, ...]
    created_at: datetime
    revision: int

    @classmethod
    def of(cls, permit: Permit) -> "PermitView":
        return cls(**permit.model_dump(exclude={"tenant", "app_id"}))


class AuditView(View):
    seq: int
    shard: str
    at: datetime
    action: str
    object: str
    by: str
    trace_id: str
    detail: dict[str, Any]
    workflow_id: str | None
    workflow_run_id: str | None
    workflow_event_id: int | None
    hash: str

    @classmethod
    def of(cls, record: AuditRecord) -> "AuditView":
        decided = record.provenance
        return cls(
            **record.model_dump(include={"seq", "shard", "at", "object", "detail", "hash"}),
            action=record.action.value,
            by=record.context.by,
            trace_id=record.context.trace_id,
            workflow_id=decided.workflow_id if decided else None,
            workflow_run_id=decided.run_id if decided else None,
            workflow_event_id=decided.event_id if decided else None,
        )


class LeaseView(View):
    """The one answer that shows an access token."""

    access_token: str
    token_type: str
    expires_at: datetime | None
    scopes: tuple[str, ...]
    generation: int
    connection_id: str


class ProofView(View):
    """A `DPoP` header for one request with the token of `generation`: any other token needs another."""

    proof: str
    token_type: str
    htu: str
    generation: int
    expires_at: datetime | None
    connection_id: str


class TimelineEvent(View):
    """One event of a connection's life, as its workflow's history has it."""

    at: datetime
    run_id: str
    event_id: int
    what: str
    detail: dict[str, Any]


class Timeline(View):
    """`live` says whether the running workflow could be asked; exported runs are always there."""

    items: list[TimelineEvent]
    live: bool
    next_cursor: str | None = None
