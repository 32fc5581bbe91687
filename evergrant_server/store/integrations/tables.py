"""The table of integrations. `sealed_*` columns hold sealed bytes only."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


class IntegrationRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    provider: str
    client_id: str
    issuer: str | None = None
    params: dict[str, str] = columns.json()
    client_auth: str | None = None
    default_scopes: list[str] = columns.json()
    scope_ceiling: list[str] | None = columns.json()
    binding: str
    login: dict[str, Any] | None = columns.json()
    on_reconnect: str
    after_grant_over: str
    identity_provider: str | None = None
    refresh: dict[str, Any] = columns.json()
    refresh_overrides: dict[str, Any] | None = columns.json()
    state: str
    problem: str | None = None
    endpoints: dict[str, Any] | None = columns.json()
    sealed_client_secret: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_previous_secret: Sealed | None = columns.sealed(columns.BY_INTAKE)
    previous_secret_until: datetime | None = columns.timestamp()
    secret_refused_at: datetime | None = columns.timestamp()
    dpop: bool | None = None
    registration: str | None = None
    registration_sent_at: datetime | None = columns.timestamp()
    registration_url: str | None = None
    client_secret_expires_at: datetime | None = columns.timestamp()
    client_certificate_expires_at: datetime | None = columns.timestamp()
    metadata_read_at: datetime | None = columns.timestamp()
    sealed_initial_token: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_registration_token: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_client_key: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_previous_key: Sealed | None = columns.sealed(columns.BY_INTAKE)  # with the same end as a secret
    sealed_client_certificate: Sealed | None = columns.sealed(columns.BY_INTAKE)
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None
    pinned_hosts: str | None = None  # where its secrets may be sent, under the next one
    destination_mac: str | None = None  # written by workers: see `authority`
