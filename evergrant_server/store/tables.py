"""The tables. Every one starts with `tenant` and its rows carry `revision`.

`sealed_*` columns hold sealed bytes only; docs/reference/storage.md says in which purpose.
Statements are built from these classes with SQLAlchemy Core: rows never become session
objects, because the rows are not the domain.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Text, UniqueConstraint, text
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.crypto import Sealed
from evergrant_server.store.columns import BIG_INTEGER, METADATA, Row
from evergrant_server.store.columns import app_foreign_key as _of_app
from evergrant_server.store.columns import connection_foreign_key as _of_connection
from evergrant_server.store.columns import json_column as _json
from evergrant_server.store.columns import optional_timestamp_column as _maybe_moment
from evergrant_server.store.columns import sealed_column as _sealed
from evergrant_server.store.columns import timestamp_column as _moment

__all__ = ["METADATA", "Row"]

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
    requested_scopes: list[str] = _json()
    reason: str | None = None
    revocation: str | None = None
    revoke_reason: str | None = None
    refresh_policy: str
    flow: str
    target: dict[str, Any] = _json()
    source: str | None = None
    source_app: str | None = None
    created_at: datetime = _moment()
    changed_at: datetime = _moment()
    consent_deadline: datetime = _moment()
    failures: int = 0
    last_failure: str | None = None
    last_failed_at: datetime | None = _maybe_moment()
    failing_since: datetime | None = _maybe_moment()
    follow_up: str | None = None
    choice: str | None = None
    slot_scopes: dict[str, Any] = _json()
    consented_with: str | None = None
    reported_generation: int | None = None
    revision: int


class ConnectionGrantRow(Row, table=True):
    __table_args__ = (_of_connection(), Index(None, "tenant", "expires_at"))
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    slot: str = Field(primary_key=True)
    generation: int
    token_type: str
    scopes: list[str] = _json()
    obtained_at: datetime = _moment()
    expires_at: datetime | None = _maybe_moment()
    refresh_expires_at: datetime | None = _maybe_moment()
    refreshable: bool
    short_lived: bool = False
    facts: dict[str, Any] = _json()  # the grant's `metadata`
    options: list[dict[str, Any]] = _json()
    sealed_access: Sealed | None = _sealed()
    sealed_refresh: Sealed | None = _sealed()
    sealed_id_token: Sealed | None = _sealed()
    revision: int


class IntegrationRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    provider: str
    client_id: str
    issuer: str | None = None
    params: dict[str, str] = _json()
    client_auth: str | None = None
    default_scopes: list[str] = _json()
    scope_ceiling: list[str] | None = Field(default=None, sa_type=JSON)
    refresh: dict[str, Any] = _json()
    refresh_overrides: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    state: str
    problem: str | None = None
    endpoints: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    sealed_client_secret: Sealed | None = _sealed()
    sealed_previous_secret: Sealed | None = _sealed()
    previous_secret_until: datetime | None = _maybe_moment()
    secret_refused_at: datetime | None = _maybe_moment()
    dpop: bool | None = None
    registration: str | None = None
    registration_sent_at: datetime | None = _maybe_moment()
    registration_url: str | None = None
    client_secret_expires_at: datetime | None = _maybe_moment()
    client_certificate_expires_at: datetime | None = _maybe_moment()
    metadata_read_at: datetime | None = _maybe_moment()
    sealed_initial_token: Sealed | None = _sealed()
    sealed_registration_token: Sealed | None = _sealed()
    sealed_client_key: Sealed | None = _sealed()
    sealed_client_certificate: Sealed | None = _sealed()
    created_at: datetime = _moment()
    changed_at: datetime = _moment()
    revision: int


class AppRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    disabled: bool
    return_to: list[str] = _json()
    created_at: datetime = _moment()
    revision: int


class AppKeyRow(Row, table=True):
    __table_args__ = (_of_app(), Index(None, "id", unique=True), Index(None, "tenant", "app_id"))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    app_id: str
    secret_hash: str
    created_at: datetime = _moment()
    revoked_at: datetime | None = _maybe_moment()
    revision: int


class PermitRow(Row, table=True):
    __table_args__ = (_of_app(), UniqueConstraint("tenant", "app_id", "name"))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    app_id: str
    name: str
    integration: str
    subjects: list[str] = _json()
    scope_ceiling: list[str] | None = Field(default=None, sa_type=JSON)
    actions: list[str] = _json()
    created_at: datetime = _moment()
    revision: int


class ConsentRow(Row, table=True):
    __table_args__ = (
        _of_connection(),
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
    scopes: list[str] = _json()
    slot_scopes: dict[str, Any] = _json()
    return_to: str | None = None
    link_hash: str
    state_hash: str | None = None
    nonce_hash: str | None = None
    browser_hash: str | None = None
    redirect_uri: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None
    failure: str | None = None
    facts: dict[str, Any] = _json()
    granted_scopes: list[str] | None = Field(default=None, sa_type=JSON)
    created_at: datetime = _moment()
    expires_at: datetime = _moment()
    by: str
    trace_id: str
    sealed_link: Sealed | None = _sealed()
    sealed_verifier: Sealed | None = _sealed()
    sealed_code: Sealed | None = _sealed()
    sealed_tokens: Sealed | None = _sealed()
    sealed_device: Sealed | None = _sealed()
    sealed_request: Sealed | None = _sealed()
    revision: int


class ExportRow(Row, table=True):
    __table_args__ = (Index(None, "id", unique=True),)
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    status: str
    recipient: dict[str, str] = _json()
    filters: dict[str, Any] = _json()
    exported: int
    skipped: int
    pages: int
    after: str | None = None
    by: str
    trace_id: str
    created_at: datetime = _moment()
    expires_at: datetime = _moment()
    revision: int


class ExportLineRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "export_id"], ["export.tenant", "export.id"], ondelete="CASCADE"),
    )
    tenant: str = Field(primary_key=True)
    export_id: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False})  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    jwe: str = Field(sa_type=Text)
    revision: int


class AttemptRow(Row, table=True):
    __table_args__ = (
        _of_connection(),
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
    opened_at: datetime = _moment()
    send_by: datetime = _moment()
    sends: int
    first_sent_at: datetime | None = _maybe_moment()
    outcome: str | None = None
    closed_at: datetime | None = _maybe_moment()
    revision: int


class OutboxRow(Row, table=True):
    __table_args__ = (
        Index(None, "id", unique=True),
        Index(
            "ix_outbox_undelivered",
            "target",
            "seq",
            sqlite_where=text("delivered_at IS NULL"),
            postgresql_where=text("delivered_at IS NULL"),
        ),
        {"sqlite_autoincrement": True},
    )
    tenant: str
    seq: int | None = Field(default=None, primary_key=True, sa_type=BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    id: str
    kind: str
    target: str
    name: str
    payload: dict[str, Any] = _json()
    created_at: datetime = _moment()
    attempts: int
    next_at: datetime | None = _maybe_moment()
    last_error: str | None = None
    claimed_by: str | None = None
    claimed_until: datetime | None = _maybe_moment()
    delivered_at: datetime | None = _maybe_moment()
    revision: int


class UsageRow(Row, table=True):
    __table_args__ = (_of_connection(),)
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    leased_generation: int
    revision: int


class AuditRow(Row, table=True):
    __table_args__ = (Index(None, "tenant", "object", "at"), Index(None, "tenant", "at"))
    tenant: str = Field(primary_key=True)
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = _moment()
    action: str
    object: str
    by: str
    trace_id: str
    detail: str = Field(sa_type=Text)  # canonical JSON, as it was hashed
    workflow_id: str | None = None
    run_id: str | None = None
    event_id: int | None = None
    previous_hash: str
    hash: str
    revision: int


class AuditShardRow(Row, table=True):
    tenant: str = Field(primary_key=True)
    shard: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    last_hash: str
    revision: int


class HistoryRow(Row, table=True):
    __table_args__ = (_of_connection(), Index(None, "tenant", "connection_id"))
    tenant: str = Field(primary_key=True)
    connection_id: str
    workflow_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    exported_at: datetime = _moment()
    closed: bool
    last_event_id: int
    events: list[dict[str, Any]] = _json()
    revision: int


class KeyRow(Row, table=True):
    """A tenant's key (`connection_id` empty, wrapped by a root) or a connection's (by the tenant's)."""

    __table_args__ = (
        Index(
            "uq_key_current",
            "tenant",
            "connection_id",
            "purpose",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
            postgresql_where=text("retired_at IS NULL"),
        ),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    purpose: str
    connection_id: str
    wrapping_key_id: str
    sealed_key: Sealed = _sealed()
    created_at: datetime = _moment()
    retired_at: datetime | None = _maybe_moment()
    revision: int


class IdempotencyRow(Row, table=True):
    __table_args__ = (Index(None, "stored_at"),)
    tenant: str = Field(primary_key=True)
    app_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_hash: str
    status: int
    sealed_body: Sealed = _sealed()
    stored_at: datetime = _moment()
    revision: int
