"""The tables of connections: their grants, consents, attempts, late tokens, proof keys, usage and histories.

`sealed_*` columns hold sealed bytes only; docs/reference/storage.md says with which key purpose.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Index, String, bindparam, select, text, tuple_
from sqlmodel import Field

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.crypto import KeyPurpose, Sealed
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import RowPlace

FINAL_STATES = tuple(state.value for state in LifecycleState if state.is_final)
_FINAL = ", ".join(f"'{state}'" for state in sorted(FINAL_STATES))
LIVE_CONDITION, ENDED_CONDITION = f"state NOT IN ({_FINAL})", f"state IN ({_FINAL})"

FAILING_CONDITION = "state = 'active' AND failures > 0"
# active, and somebody has to act: its refresh fails, or its account is to be chosen
UNWELL_CONDITION = "state = 'active' AND (failures > 0 OR follow_up = 'choosing')"
WELL_CONDITION = "state = 'active' AND failures = 0 AND (follow_up IS NULL OR follow_up <> 'choosing')"
LABELLED_CONDITION = "label <> 'default'"
REFUSED_CONDITION = "state = 'needs_reauth' AND reason = 'refresh_refused'"
REVOKING_CONDITION = f"state = '{LifecycleState.REVOKING}'"
FIXED_END_CONDITION = "slot = 'main' AND NOT refreshable"  # no refresh puts the end of its token off
REFRESHED_CONDITION = "kind = 'refresh' AND outcome = 'installed'"


class ConnectionRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.partial_index(
            "uq_connection_live",
            "tenant",
            "integration_id",
            "subject",
            "label",
            where=LIVE_CONDITION,
            unique=True,
        ),
        Index(None, "tenant", "integration", "subject", "label"),
        # its order is that of the bytes, so that it finds a beginning whatever the database's collation is
        Index(
            "ix_connection_tenant_subject",
            *("tenant", "subject", "id"),
            postgresql_ops={"subject": "text_pattern_ops"},
        ),
        columns.partial_index(
            "ix_connection_label",
            *("tenant", "label", "id"),
            where=LABELLED_CONDITION,
            postgresql_ops={"label": "text_pattern_ops"},
        ),
        Index("ix_connection_state", "tenant", "state", "integration", "id"),
        columns.partial_index(
            # `state` is one value here: SQLite takes it for as good as `ix_connection_state`, and smaller
            "ix_connection_unwell",
            *("tenant", "state", "integration", "id"),
            where=UNWELL_CONDITION,
        ),
        columns.partial_index("ix_connection_ended", "changed_at", "id", where=ENDED_CONDITION),
        Index(None, "id", unique=True),
        columns.partial_index(
            "ix_connection_source_app", "tenant", "source_app", where="source_app IS NOT NULL"
        ),
        columns.partial_index(
            "ix_connection_failing", "tenant", "integration_id", "last_failed_at", where=FAILING_CONDITION
        ),
        columns.partial_index(
            "ix_connection_refused", "tenant", "integration_id", "changed_at", where=REFUSED_CONDITION
        ),
        columns.partial_index("ix_connection_revoking", "changed_at", "id", where=REVOKING_CONDITION),
    )
    integration_id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    generation: int
    requested_scopes: list[str] = columns.json()
    default_scopes: bool
    reason: str | None = None
    revocation: str | None = None
    revoke_reason: str | None = None
    refresh_policy: str
    flow: str
    target: dict[str, Any] = columns.json()
    source: str | None = None
    source_app: str | None = None
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    consent_deadline: datetime = columns.timestamp()
    failures: int = 0
    last_failure: str | None = None
    last_failed_at: datetime | None = columns.timestamp()
    failing_since: datetime | None = columns.timestamp()
    follow_up: str | None = None
    choice: str | None = None
    slot_scopes: dict[str, Any] = columns.json()
    consented_with: str | None = None
    expected_account: dict[str, str] | None = columns.json()
    reported_generation: int | None = None
    held_by: str | None = None
    mac: str | None = None
    account_mac: str | None = None  # of the pin: see `authority`


def _of_grant(purpose: KeyPurpose) -> columns.SealedBy:
    return columns.SealedBy(purpose, "connection_id", ("connection_id", "slot"), "generation")


class ConnectionGrantRow(columns.TenantTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "expires_at"),
        columns.partial_index(
            "ix_connection_grant_ends", "tenant", "refresh_expires_at", where="refresh_expires_at IS NOT NULL"
        ),
        columns.partial_index("ix_connection_grant_fixed", "tenant", "expires_at", where=FIXED_END_CONDITION),
    )
    connection_id: str = Field(primary_key=True)
    slot: str = Field(primary_key=True)
    generation: int
    token_type: str
    scopes: list[str] = columns.json()
    obtained_at: datetime = columns.timestamp()
    expires_at: datetime | None = columns.timestamp()
    refresh_expires_at: datetime | None = columns.timestamp()
    refreshable: bool
    short_lived: bool = False
    facts: dict[str, Any] = columns.json()  # the grant's `metadata`
    options: list[dict[str, Any]] = columns.json()
    access_generation: int | None = None
    sealed_access: Sealed | None = columns.sealed(_of_grant(KeyPurpose.LEASE))
    sealed_refresh: Sealed | None = columns.sealed(_of_grant(KeyPurpose.REFRESH))
    sealed_id_token: Sealed | None = columns.sealed(_of_grant(KeyPurpose.REFRESH))
    pinned_hosts: str | None = None  # where it was granted
    destination_mac: str | None = None  # of these hosts, and which integration it is of: see `authority`
    mac: str | None = None


class ConsentRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "link_hash", unique=True),
        Index(None, "state_hash", unique=True),
        Index(None, "confirm_hash", unique=True),
        Index(None, "tenant", "connection_id"),
        Index(None, "expires_at", "id"),
    )
    connection_id: str
    integration_id: str
    kind: str
    status: str
    scopes: list[str] = columns.json()
    slot_scopes: dict[str, Any] = columns.json()
    return_to: str | None = None
    link_hash: str
    state_hash: str | None = None
    nonce_hash: str | None = None
    browser_hash: str | None = None
    redirect_uri: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None
    failure: str | None = None
    facts: dict[str, Any] = columns.json()
    granted_scopes: list[str] | None = columns.json()
    binding: str
    app_id: str | None = None
    replaces_any: bool
    challenge: str | None = None
    confirm_hash: str | None = None
    confirm_by: datetime | None = columns.timestamp()
    confirmed_at: datetime | None = columns.timestamp()
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    by: str
    trace_id: str
    sealed_link: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_verifier: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_code: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_tokens: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_device: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_request: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_account: Sealed | None = columns.sealed(columns.BY_INTAKE)
    mac: str | None = None


class AttemptRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        columns.partial_index(
            "uq_attempt_open", "tenant", "connection_id", "slot", where="outcome IS NULL", unique=True
        ),
        Index(None, "tenant", "connection_id", "from_generation"),
        columns.partial_index(
            "ix_attempt_refreshed", "tenant", "integration_id", "closed_at", where=REFRESHED_CONDITION
        ),
        columns.partial_index("ix_attempt_closed", "closed_at", where="closed_at IS NOT NULL"),
    )
    connection_id: str
    integration_id: str | None = None
    slot: str
    kind: str
    credential: str
    from_generation: int
    journal_id: str
    opened_at: datetime = columns.timestamp()
    send_by: datetime = columns.timestamp()
    sends: int
    first_sent_at: datetime | None = columns.timestamp()
    outcome: str | None = None
    closed_at: datetime | None = columns.timestamp()


class LateTokensRow(columns.TenantTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "connection_id"),
    )
    attempt_id: str = Field(primary_key=True)
    connection_id: str
    slot: str
    from_generation: int
    requested_at: datetime = columns.timestamp()
    received_at: datetime = columns.timestamp()
    sealed_tokens: Sealed = columns.sealed(
        columns.SealedBy(KeyPurpose.REFRESH, "connection_id", ("attempt_id",), "from_generation")
    )


class ProofKeyRow(columns.TenantTable, table=True):
    __table_args__ = (columns.connection_foreign_key(),)
    connection_id: str = Field(primary_key=True)
    thumbprint: str
    sealed_key: Sealed = columns.sealed(
        columns.SealedBy(KeyPurpose.LEASE, "connection_id", ("connection_id",))
    )
    created_at: datetime = columns.timestamp()


class UsageRow(columns.TenantTable, table=True):
    __table_args__ = (columns.connection_foreign_key(),)
    connection_id: str = Field(primary_key=True)
    leased_generation: int


class HistoryRow(columns.TenantTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "connection_id"),
        Index(None, "exported_at"),
    )
    connection_id: str
    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    exported_at: datetime = columns.timestamp()
    closed: bool
    last_event_id: int
    events: list[dict[str, Any]] = columns.json()


def ended_connections(before: datetime, seen: RowPlace, limit: int) -> Executable:
    """Tenant, id and moment of the connections that had ended before then, behind the place `seen`."""
    row = columns.table_of(ConnectionRow).c
    ended = select(row.tenant, row.id, row.changed_at).where(text(ENDED_CONDITION), row.changed_at < before)
    ended = ended.where(
        tuple_(row.changed_at, row.id) > tuple_(*seen, types=[columns.UtcDateTime(), String()])
    )
    return ended.order_by(row.changed_at, row.id).limit(limit)


# Built once: an import looks each of its names up.
_ROW = columns.table_of(ConnectionRow).c
BY_NAMES = (
    select(columns.table_of(ConnectionRow))
    .where(*(_ROW[name] == bindparam(name) for name in ("tenant", "integration", "subject", "label")))
    .order_by(_ROW.state.in_(FINAL_STATES), _ROW.created_at.desc(), _ROW.id)
    .limit(1)
)
