"""The tables of people: where they log in, their logins that are under way, and their sessions."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


class AdminLoginRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant"),)
    integration: str
    issuer: str
    groups_claim: str
    roles: dict[str, list[str]] = columns.json()
    scopes: list[str] = columns.json()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class PersonLoginRow(columns.IdTable, table=True):
    __table_args__ = (
        Index(None, "state_hash", unique=True),
        Index(None, "code_hash", unique=True),
        Index(None, "expires_at"),
    )
    status: str
    rule: str
    integration_id: str
    state_hash: str | None = None
    nonce_hash: str
    browser_hash: str
    redirect_uri: str
    issuer: str
    token_endpoint: str
    step_up: bool
    command: dict[str, Any] | None = columns.json()
    code_hash: str | None = None
    person: dict[str, Any] | None = columns.json()
    role: str | None = None
    authenticated_at: datetime | None = columns.timestamp()
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    sealed_verifier: Sealed | None = columns.sealed()
    sealed_code: Sealed | None = columns.sealed()
    mac: str | None = None
    authorize: str | None = None
    subject: str | None = None


class PersonSessionRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "secret_hash", unique=True), Index(None, "expires_at"))
    kind: str
    secret_hash: str
    rule: str | None = None
    person: dict[str, Any] = columns.json()
    role: str
    reason: str | None = None
    authenticated_at: datetime | None = columns.timestamp()
    created_at: datetime = columns.timestamp()
    last_used_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()
    mac: str | None = None
