"""The rule by which clients' subjects log in, requests under way, of devices too, sessions, and remembered
consents."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Index, UniqueConstraint, delete, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.ids import (
    AuthorizationRequestId,
    ClientConsentId,
    ClientLoginId,
    DeviceAuthorizationId,
    SessionId,
    Tenant,
)
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.requests import (
    AuthorizationRequest,
    ClientConsent,
    DeviceAuthorization,
    SubjectSession,
)
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal


class ClientLoginRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant"), columns.app_foreign_key())
    app_id: str
    integration: str
    issuer: str
    claim: str
    domains: list[str] = columns.json()
    registration: bool
    documents: bool
    device: bool = False
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
    device_id: str | None = None
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None


class DeviceAuthorizationRow(columns.IdTable, table=True):
    __table_args__ = (
        Index(None, "device_hash", unique=True),
        Index(None, "user_code", unique=True),
        Index(None, "expires_at"),
    )
    client_id: str
    resource: str
    connection_id: str | None = None
    device_hash: str
    user_code: str
    status: str
    interval_s: int
    polled_at: datetime | None = columns.timestamp()
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


class ClientLogins(AuthenticatedRepository[ClientLogin, ClientLoginId]):
    _table, _model = ClientLoginRow, ClientLogin

    async def of_tenant(self, tenant: Tenant) -> ClientLogin | None:
        return await self._one(tenant=tenant)

    async def to_replace(self, tenant: Tenant) -> ClientLogin | None:
        """The rule as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant)

    async def any_takes_registrations(self) -> bool:
        """Whether some tenant has said as which app clients that register themselves act. Not checked."""
        query = select(col(ClientLoginRow.id)).where(col(ClientLoginRow.registration).is_(True)).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def put(self, rule: ClientLogin, before: ClientLogin | None) -> ClientLogin:
        """In place of the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        return await self._put_for(before, rule)

    async def delete(self, rule: ClientLogin) -> None:
        """Delete the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        await self._delete_read(rule)


class AuthorizationRequests(AuthenticatedRepository[AuthorizationRequest, AuthorizationRequestId]):
    _table, _model = AuthorizationRequestRow, AuthorizationRequest

    async def add(self, request: AuthorizationRequest) -> None:
        await self._add(request, f"Request {request.id}")

    async def find_in_any_tenant(self, id: AuthorizationRequestId) -> AuthorizationRequest | None:
        return await self._one(id=id)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete requests that expired before this moment, `limit` at the most; returns how many."""
        key = (col(AuthorizationRequestRow.tenant), col(AuthorizationRequestRow.id))
        old = select(*key).where(col(AuthorizationRequestRow.expires_at) < before).limit(limit)
        return await self._run(delete(AuthorizationRequestRow).where(tuple_(*key).in_(old)))


class DeviceAuthorizations(AuthenticatedRepository[DeviceAuthorization, DeviceAuthorizationId]):
    _table, _model = DeviceAuthorizationRow, DeviceAuthorization

    async def add(self, device: DeviceAuthorization) -> None:
        await self._add(device, f"Device authorization {device.id}")

    async def by_device_hash(self, device_hash: str) -> DeviceAuthorization | None:
        return await self._one(device_hash=device_hash)

    async def by_user_code(self, user_code: str) -> DeviceAuthorization | None:
        return await self._one(user_code=user_code)

    async def polled(self, device: DeviceAuthorization, at: datetime, interval_s: int) -> None:
        """Note a poll, which no authenticator covers."""
        row = columns_equal(DeviceAuthorizationRow, tenant=device.tenant, id=device.id)
        values = {"polled_at": at, "interval_s": interval_s}
        await self._run(update(DeviceAuthorizationRow).where(row).values(values))

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete those that expired before this moment, `limit` at the most; returns how many."""
        key = (col(DeviceAuthorizationRow.tenant), col(DeviceAuthorizationRow.id))
        old = select(*key).where(col(DeviceAuthorizationRow.expires_at) < before).limit(limit)
        return await self._run(delete(DeviceAuthorizationRow).where(tuple_(*key).in_(old)))


class SubjectSessions(AuthenticatedRepository[SubjectSession, SessionId]):
    _table, _model = SubjectSessionRow, SubjectSession

    async def add(self, session: SubjectSession) -> None:
        await self._add(session, f"Session {session.id}")

    async def by_secret(self, secret_hash: str) -> SubjectSession | None:
        """The session with this secret, in whichever tenant, ended or not."""
        return await self._one(secret_hash=secret_hash)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete sessions that expired before this moment, `limit` at the most; returns how many."""
        key = (col(SubjectSessionRow.tenant), col(SubjectSessionRow.id))
        old = select(*key).where(col(SubjectSessionRow.expires_at) < before).limit(limit)
        return await self._run(delete(SubjectSessionRow).where(tuple_(*key).in_(old)))


class ClientConsents(AuthenticatedRepository[ClientConsent, ClientConsentId]):
    _table, _model = ClientConsentRow, ClientConsent

    async def put(self, consent: ClientConsent) -> None:
        """In place of the one of before."""
        await self._run(delete(ClientConsentRow).where(self._is(consent)))
        await self._add(consent, f"Consent {consent.id}")

    async def used(self, consent: ClientConsent, at: datetime) -> bool:
        """Raise the time of its last use, which no authenticator covers. False for one that is gone."""
        used = update(ClientConsentRow).where(self._is(consent)).values({"used_at": at})
        return await self._run(used) == 1

    async def delete(self, consent: ClientConsent) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"Consent {consent.id}", tenant=consent.tenant, id=consent.id)

    async def forget(self, client_id: str) -> None:
        """Delete what anyone, in any tenant, has agreed to for this client: its people are asked again."""
        await self._run(delete(ClientConsentRow).where(columns_equal(ClientConsentRow, client_id=client_id)))

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete consents that weren't used since then, `limit` at the most; returns how many."""
        key = (col(ClientConsentRow.tenant), col(ClientConsentRow.id))
        old = select(*key).where(col(ClientConsentRow.used_at) < before).limit(limit)
        return await self._run(delete(ClientConsentRow).where(tuple_(*key).in_(old)))

    @staticmethod
    def _is(consent: ClientConsent) -> ColumnElement[bool]:
        return columns_equal(ClientConsentRow, tenant=consent.tenant, id=consent.id)
