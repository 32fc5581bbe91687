"""The tables of Evergrant as the authorization server of its gateways."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlmodel import ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


def _family_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant", "family_id"], ["token_family.tenant", "token_family.id"], ondelete="CASCADE"
    )


class OAuthClientRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "client_id", unique=True), Index(None, "used_at"))
    client_id: str
    kind: str
    name: str
    redirect_uris: list[str] = columns.json()
    application_type: str
    auth_method: str
    jwks: dict[str, Any] | None = columns.json()
    jwks_uri: str | None = None
    scopes: list[str] | None = columns.json()
    client_uri: str | None = None
    disabled: bool
    created_at: datetime = columns.timestamp()
    fresh_until: datetime | None = columns.timestamp()
    used_at: datetime | None = columns.timestamp()
    mac: str | None = None


class AuthorizationCodeRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        Index(None, "code_hash", unique=True),
        Index(None, "tenant", "app_id"),
        Index(None, "expires_at"),
    )
    client_id: str
    app_id: str
    subject: str
    resource: str
    connection_id: str | None = None
    scopes: list[str] = columns.json()
    rule: str | None = None
    code_hash: str
    redirect_uri: str
    challenge: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    used_at: datetime | None = columns.timestamp()
    family_id: str | None = None
    mac: str | None = None


class TokenFamilyRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.app_foreign_key(),
        Index(None, "tenant", "app_id"),
        Index(None, "tenant", "client_id"),
        Index(None, "tenant", "subject"),
        Index(None, "expires_at"),
    )
    client_id: str
    app_id: str
    subject: str
    resource: str
    connection_id: str | None = None
    scopes: list[str] = columns.json()
    rule: str | None = None
    bound: bool
    created_at: datetime = columns.timestamp()
    used_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()
    end: str | None = None
    replays: int
    mac: str | None = None


class RefreshTokenRow(columns.IdTable, table=True):
    __table_args__ = (
        _family_foreign_key(),
        Index(None, "id", unique=True),
        Index(None, "tenant", "family_id"),
    )
    family_id: str
    secret_hash: str
    created_at: datetime = columns.timestamp()
    rotated_at: datetime | None = columns.timestamp()
    successor_id: str | None = None
    replays: int
    late_replays: int
    sealed_successor: Sealed | None = columns.sealed(columns.BY_INTAKE)
    mac: str | None = None


class AccessTokenRow(columns.IdTable, table=True):
    __table_args__ = (
        _family_foreign_key(),
        Index(None, "id", unique=True),
        Index(None, "tenant", "family_id"),
        Index(None, "expires_at"),
    )
    family_id: str
    secret_hash: str
    resource: str
    scopes: list[str] = columns.json()
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None
