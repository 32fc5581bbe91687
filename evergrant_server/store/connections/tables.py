"""The tables of connections: their grants, consents, attempts, late tokens, proof keys, usage and histories.

`sealed_*` columns hold sealed bytes only; docs/reference/storage.md says with which key purpose.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.crypto import Sealed
from evergrant_server.store.database.columns import (
    Row,
    connection_foreign_key,
    json_column,
    optional_json_column,
    optional_timestamp_column,
    sealed_column,
    timestamp_column,
)

FINAL_STATES = tuple(state.value for state in LifecycleState if state.is_final)
LIVE_CONDITION = text("state NOT IN ({})".format(", ".join(f"'{state}'" for state in sorted(FINAL_STATES))))


class ConnectionRow(Row, table=True):
    __table_args__ = (
        Index(
            "uq_connection_live",
            "tenant",
            "integration_id",
            "subject",
            "label",
            unique=True,
            sqlite_where=LIVE_CONDITION,
            postgresql_where=LIVE_CONDITION,
        ),
        Index(None, "tenant", "integration", "subject", "label"),
        Index(None, "id", unique=True),
        Index(
            "ix_connection_source_app",
            "tenant",
            "source_app",
            sqlite_where=text("source_app IS NOT NULL"),
            postgresql_where=text("source_app IS NOT NULL"),
        ),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    integration_id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    generation: int
    requested_scopes: list[str] = json_column()
    reason: str | None = None
    revocation: str | None = None
    revoke_reason: str | None = None
    refresh_policy: str
    flow: str
    target: dict[str, Any] = json_column()
    source: str | None = None
    source_app: str | None = None
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    consent_deadline: datetime = timestamp_column()
    failures: int = 0
    last_failure: str | None = None
    last_failed_at: datetime | None = optional_timestamp_column()
    failing_since: datetime | None = optional_timestamp_column()
    follow_up: str | None = None
    choice: str | None = None
    slot_scopes: dict[str, Any] = json_column()
    consented_with: str | None = None
    reported_generation: int | None = None
    revision: int


class ConnectionGrantRow(Row, table=True):
    __table_args__ = (connection_foreign_key(), Index(None, "tenant", "expires_at"))
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    slot: str = Field(primary_key=True)
    generation: int
    token_type: str
    scopes: list[str] = json_column()
    obtained_at: datetime = timestamp_column()
    expires_at: datetime | None = optional_timestamp_column()
    refresh_expires_at: datetime | None = optional_timestamp_column()
    refreshable: bool
    short_lived: bool = False
    facts: dict[str, Any] = json_column()  # the grant's `metadata`
    options: list[dict[str, Any]] = json_column()
    sealed_access: Sealed | None = sealed_column()
    sealed_refresh: Sealed | None = sealed_column()
    sealed_id_token: Sealed | None = sealed_column()
    revision: int


class ConsentRow(Row, table=True):
    __table_args__ = (
        connection_foreign_key(),
        Index(None, "link_hash", unique=True),
        Index(None, "state_hash", unique=True),
        Index(None, "tenant", "connection_id"),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    connection_id: str
    integration_id: str
    kind: str
    status: str
    scopes: list[str] = json_column()
    slot_scopes: dict[str, Any] = json_column()
    return_to: str | None = None
    link_hash: str
    state_hash: str | None = None
    nonce_hash: str | None = None
    browser_hash: str | None = None
    redirect_uri: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None
    failure: str | None = None
    facts: dict[str, Any] = json_column()
    granted_scopes: list[str] | None = optional_json_column()
    created_at: datetime = timestamp_column()
    expires_at: datetime = timestamp_column()
    by: str
    trace_id: str
    sealed_link: Sealed | None = sealed_column()
    sealed_verifier: Sealed | None = sealed_column()
    sealed_code: Sealed | None = sealed_column()
    sealed_tokens: Sealed | None = sealed_column()
    sealed_device: Sealed | None = sealed_column()
    sealed_request: Sealed | None = sealed_column()
    revision: int


class AttemptRow(Row, table=True):
    __table_args__ = (
        connection_foreign_key(),
        Index(
            "uq_attempt_open",
            "tenant",
            "connection_id",
            "slot",
            unique=True,
            sqlite_where=text("outcome IS NULL"),
            postgresql_where=text("outcome IS NULL"),
        ),
        Index(None, "tenant", "connection_id", "from_generation"),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    connection_id: str
    slot: str
    kind: str
    credential: str
    from_generation: int
    journal_id: str
    opened_at: datetime = timestamp_column()
    send_by: datetime = timestamp_column()
    sends: int
    first_sent_at: datetime | None = optional_timestamp_column()
    outcome: str | None = None
    closed_at: datetime | None = optional_timestamp_column()
    revision: int


class LateTokensRow(Row, table=True):
    __table_args__ = (
        connection_foreign_key(),
        Index(None, "tenant", "connection_id"),
    )
    tenant: str = Field(primary_key=True)
    attempt_id: str = Field(primary_key=True)
    connection_id: str
    slot: str
    from_generation: int
    requested_at: datetime = timestamp_column()
    received_at: datetime = timestamp_column()
    sealed_tokens: Sealed = sealed_column()
    revision: int


class ProofKeyRow(Row, table=True):
    __table_args__ = (connection_foreign_key(),)
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    thumbprint: str
    sealed_key: Sealed = sealed_column()
    created_at: datetime = timestamp_column()
    revision: int


class UsageRow(Row, table=True):
    __table_args__ = (connection_foreign_key(),)
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    leased_generation: int
    revision: int


class HistoryRow(Row, table=True):
    __table_args__ = (connection_foreign_key(), Index(None, "tenant", "connection_id"))
    tenant: str = Field(primary_key=True)
    connection_id: str
    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    exported_at: datetime = timestamp_column()
    closed: bool
    last_event_id: int
    events: list[dict[str, Any]] = json_column()
    revision: int
