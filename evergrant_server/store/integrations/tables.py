"""The tables of integrations and of the provider definitions that tenants bring."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from evergrant_server.crypto import Sealed
from evergrant_server.store.database.columns import (
    Row,
    json_column,
    optional_json_column,
    optional_timestamp_column,
    sealed_column,
    timestamp_column,
)


class IntegrationRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    provider: str
    client_id: str
    issuer: str | None = None
    params: dict[str, str] = json_column()
    client_auth: str | None = None
    default_scopes: list[str] = json_column()
    scope_ceiling: list[str] | None = optional_json_column()
    refresh: dict[str, Any] = json_column()
    refresh_overrides: dict[str, Any] | None = optional_json_column()
    state: str
    problem: str | None = None
    endpoints: dict[str, Any] | None = optional_json_column()
    sealed_client_secret: Sealed | None = sealed_column()
    sealed_previous_secret: Sealed | None = sealed_column()
    previous_secret_until: datetime | None = optional_timestamp_column()
    secret_refused_at: datetime | None = optional_timestamp_column()
    dpop: bool | None = None
    registration: str | None = None
    registration_sent_at: datetime | None = optional_timestamp_column()
    registration_url: str | None = None
    client_secret_expires_at: datetime | None = optional_timestamp_column()
    client_certificate_expires_at: datetime | None = optional_timestamp_column()
    metadata_read_at: datetime | None = optional_timestamp_column()
    sealed_initial_token: Sealed | None = sealed_column()
    sealed_registration_token: Sealed | None = sealed_column()
    sealed_client_key: Sealed | None = sealed_column()
    sealed_client_certificate: Sealed | None = sealed_column()
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    revision: int


class DefinitionRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name", "version"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    version: int
    document: dict[str, Any] = json_column()
    state: str
    share: float
    rollout: dict[str, Any] = json_column()
    findings: list[dict[str, Any]] = json_column()
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None = None
    approved: bool | None = None
    reason: str | None = None
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    revision: int
