"""Where people log in, their logins that are under way, and their sessions."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, delete, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AdminLoginId, PersonLoginId, SessionId, Tenant
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, not_found
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

_VERIFIER, _CODE = "sealed_verifier", "sealed_code"


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
    sealed_verifier: Sealed | None = columns.sealed(columns.BY_INTAKE)
    sealed_code: Sealed | None = columns.sealed(columns.BY_INTAKE)
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


class AdminLogins(AuthenticatedRepository[AdminLogin, AdminLoginId]):
    _table, _model = AdminLoginRow, AdminLogin

    async def of_tenant(self, tenant: Tenant) -> AdminLogin | None:
        return await self._one(tenant=tenant)

    async def to_replace(self, tenant: Tenant) -> AdminLogin | None:
        """The rule as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant)

    async def put(self, rule: AdminLogin, before: AdminLogin | None) -> AdminLogin:
        """In place of the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        return await self._put_for(before, rule)

    async def delete(self, rule: AdminLogin) -> None:
        """Delete the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        await self._delete_read(rule)


class PersonLogins(
    IntakeRepository[PersonLogin, PersonLoginId], AuthenticatedRepository[PersonLogin, PersonLoginId]
):
    """Logins, with their verifier and code sealed by the tenant's intake key."""

    _table, _model = PersonLoginRow, PersonLogin

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(self, login: PersonLogin, verifier: Secret) -> None:
        await self._add(login, f"Login {login.id}", **await self._sealed(login, {_VERIFIER: verifier}))

    async def by_state(self, state_hash: str) -> PersonLogin | None:
        """The login that this `state` belongs to, in whichever tenant."""
        return await self._one(state_hash=state_hash)

    async def by_code(self, code_hash: str) -> PersonLogin | None:
        """The login whose command was given this one-time code, in whichever tenant."""
        return await self._one(code_hash=code_hash)

    async def code_received(self, login: PersonLogin, code: Secret, *, expected: int) -> PersonLogin:
        """Raises Failure STORE_CONFLICT when the callback was used already."""
        return await self._change(login, expected, **await self._sealed(login, {_CODE: code}))

    async def verified(self, login: PersonLogin, *, expected: int) -> PersonLogin:
        """With its outcome, and without its secrets. Raises Failure STORE_CONFLICT."""
        return await self._change(login, expected, sealed_verifier=None, sealed_code=None)

    async def secrets(self, login: PersonLogin) -> tuple[Secret, Secret]:
        """The authorization code and the verifier. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        code, verifier = await self._opened(login, _CODE), await self._opened(login, _VERIFIER)
        if code is None or verifier is None:
            raise not_found(f"the code of {login.id}")
        return code, verifier

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete logins that expired before this moment, `limit` at the most; returns how many."""
        key = (col(PersonLoginRow.tenant), col(PersonLoginRow.id))
        old = select(*key).where(col(PersonLoginRow.expires_at) < before).limit(limit)
        return await self._run(delete(PersonLoginRow).where(tuple_(*key).in_(old)))


class PersonSessions(AuthenticatedRepository[PersonSession, SessionId]):
    _table, _model = PersonSessionRow, PersonSession

    async def add(self, session: PersonSession) -> PersonSession:
        return await self._add(session, f"Session {session.id}")

    async def by_secret(self, secret_hash: str) -> PersonSession | None:
        """The session with this secret, in whichever tenant, ended or not."""
        return await self._one(secret_hash=secret_hash)

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[PersonSession]:
        """Sessions sorted by id, ended ones until they are pruned. Not checked."""
        return await self._page(self._where(tenant=tenant), "id", after, limit)

    async def to_end(self, tenant: Tenant, id: SessionId) -> PersonSession | None:
        """The session as its row says, also one with a broken authenticator."""
        return await self._one_unchecked(tenant=tenant, id=id)

    async def end(self, tenant: Tenant, id: SessionId, at: datetime) -> PersonSession | None:
        """End it, also one with a broken authenticator; None if it has ended. Raises Failure NOT_FOUND."""
        session = await self.to_end(tenant, id)
        if session is None:
            raise Failure(ErrorCode.NOT_FOUND)
        if session.ended_at is not None:
            return None
        return await self.replace(session.__replace__(ended_at=at), expected=session.revision)

    async def used(self, session: PersonSession, at: datetime) -> None:
        """Raise the time of its last use, which no authenticator covers."""
        mine = columns_equal(PersonSessionRow, tenant=session.tenant, id=session.id)
        await self._run(update(PersonSessionRow).where(mine).values({"last_used_at": at}))

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete sessions that expired before this moment, `limit` at the most; returns how many."""
        key = (col(PersonSessionRow.tenant), col(PersonSessionRow.id))
        old = select(*key).where(col(PersonSessionRow.expires_at) < before).limit(limit)
        return await self._run(delete(PersonSessionRow).where(tuple_(*key).in_(old)))
