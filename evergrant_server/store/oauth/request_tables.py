"""The tables of authorization requests: the tenant's rule, requests, sessions, remembered consents."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint

from evergrant_server.store.database import columns


class ClientLoginRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant"), columns.app_foreign_key())
    app_id: str
    integration: str
    issuer: str
    claim: str
    domains: list[str] = columns.json()
    registration: bool
    documents: bool
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class AuthorizationRequestRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "id", unique=True), Index(None, "expires_at"))
    status: str
    client_id: str
    app_id: str
    subject: str
    resource: str
    connection_id: str | None = None
    scopes: list[str] = columns.json()
    rule: str | None = None
    redirect_uri: str
    challenge: str
    state: str | None = None
    session_id: str
    browser_hash: str
    consent_id: str | None = None
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None


class SubjectSessionRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "secret_hash", unique=True), Index(None, "expires_at"))
    secret_hash: str
    rule: str
    subject: str
    person: dict[str, Any] = columns.json()
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()
    mac: str | None = None


class ClientConsentRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "tenant", "subject"), Index(None, "used_at"))
    client_id: str
    subject: str
    resource: str
    redirect_uri: str
    rule: str
    created_at: datetime = columns.timestamp()
    used_at: datetime = columns.timestamp()
    mac: str | None = None
