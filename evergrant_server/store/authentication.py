"""Credentials of apps, the access tokens that they get, assertions that were used up, and sessions of keys.

A change of a credential moves its app's revision, as that of a key does (`access`). A token moves nothing.
"""

import hashlib
from datetime import datetime

from sqlalchemy import Index, delete, select, tuple_
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.access import (
    MOST_CREDENTIALS,
    App,
    AppCredential,
    AppToken,
    AuthenticationMethod,
    KeySession,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, CredentialId, SessionId, Tenant, TokenId, TrustedIssuerId
from evergrant_server.crypto import KeyRing
from evergrant_server.store.access import Access, AppCredentialRow, AppKeyUseRow, app_foreign_key
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, fetch_all, insert


class AppTokenRow(columns.IdTable, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "credential_id"], ["app_credential.tenant", "app_credential.id"], ondelete="CASCADE"
        ),
        Index(None, "id", unique=True),
        Index(None, "tenant", "credential_id"),
        Index(None, "expires_at"),
    )
    app_id: str
    credential_id: str
    credential_revision: int
    method: str
    confirmation: dict[str, str] | None = columns.json()
    secret_hash: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None


class KeySessionRow(columns.IdTable, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "key_id"], ["app_key.tenant", "app_key.id"], ondelete="CASCADE"),
        Index(None, "id", unique=True),
        Index(None, "tenant", "key_id"),
        Index(None, "expires_at"),
    )
    key_id: str
    secret_hash: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None


class AppAssertionRow(columns.TenantTable, table=True):
    __table_args__ = (app_foreign_key(), Index(None, "expires_at"))
    app_id: str = Field(primary_key=True)
    jti_hash: str = Field(primary_key=True)
    expires_at: datetime = columns.timestamp()


class AppCredentials(AuthenticatedRepository[AppCredential, CredentialId]):
    _table, _model = AppCredentialRow, AppCredential

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection, ring)
        self._access = Access(connection, ring)

    async def put(self, credential: AppCredential, *, expected: int | None) -> AppCredential:
        """Add (`expected` None) or replace one, which ends its tokens.

        Raises Failure ALREADY_EXISTS also when the app has MOST_CREDENTIALS, STORE_CONFLICT, NOT_FOUND.
        """
        await self._access.bump(credential.tenant, credential.app_id)
        if expected is None:
            if len(await self.of_app(credential.tenant, credential.app_id)) >= MOST_CREDENTIALS:
                why = f"The app has {MOST_CREDENTIALS} credentials already: delete one of them first."
                raise Failure(ErrorCode.ALREADY_EXISTS, why)
        else:
            await self._end_tokens(credential)
        return await self._put(credential, f"Credential {credential.name!r}", expected)

    async def by_name(self, tenant: Tenant, app_id: AppId, name: str) -> AppCredential | None:
        """The credential as its row says, also with a broken authenticator, which a put repairs."""
        return await self._one_unchecked(tenant=tenant, app_id=app_id, name=name)

    async def of_app(self, tenant: Tenant, app_id: AppId) -> list[AppCredential]:
        """All credentials of an app, sorted by name. Not checked."""
        mine = self._where(tenant=tenant, app_id=app_id).order_by(col(AppCredentialRow.name))
        return await self._all_unchecked(mine)

    async def authentic_of_app(
        self, tenant: Tenant, app_id: AppId
    ) -> tuple[list[AppCredential], list[Failure]]:
        """The credentials that an app may prove its identity with, and the failure of each broken row."""
        good: list[AppCredential] = []
        broken: list[Failure] = []
        for row in await fetch_all(self._connection, self._where(tenant=tenant, app_id=app_id)):
            try:
                good += await self._current([self._authentic(row)])
            except Failure as failure:
                broken.append(failure)
        return good, broken

    async def delete(self, credential: AppCredential) -> None:
        """Delete it with its tokens and its last use. Raises Failure NOT_FOUND."""
        tenant, id = credential.tenant, credential.id
        await self._end_tokens(credential)
        used = columns_equal(AppKeyUseRow, tenant=tenant, key_id=id)
        await self._run(delete(AppKeyUseRow).where(used))
        await self._delete(f"Credential {credential.name!r}", tenant=tenant, id=id)
        await self._access.bump(tenant, credential.app_id)

    async def of_issuer(self, tenant: Tenant, issuer_id: TrustedIssuerId) -> list[AppCredential]:
        """The credentials that name a trusted issuer. Not checked."""
        named = col(AppCredentialRow.parameters)["issuer_id"].as_string() == issuer_id
        methods = (AuthenticationMethod.WORKLOAD_IDENTITY, AuthenticationMethod.X509_SVID)
        of_workloads = col(AppCredentialRow.method).in_([method.value for method in methods])
        return await self._all_unchecked(self._where(named, of_workloads, tenant=tenant))

    async def app(self, app_id: AppId) -> App | None:
        """The app with this id in whichever tenant. Raises Failure AUTHORITY_BROKEN."""
        return await self._access._one(id=app_id)

    async def _end_tokens(self, credential: AppCredential) -> None:
        mine = columns_equal(AppTokenRow, tenant=credential.tenant, credential_id=credential.id)
        await self._run(delete(AppTokenRow).where(mine))


class AppTokens(AuthenticatedRepository[AppToken, TokenId]):
    """Access tokens. Their MAC covers every field, but a gateway, which checks it, could make one too."""

    _table, _model = AppTokenRow, AppToken

    async def add(self, token: AppToken) -> None:
        await self._add(token, f"Token {token.id}")

    async def find(self, id: TokenId) -> AppToken | None:
        """The token with this id in whichever tenant, expired or not. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(id=id)

    async def use_assertion(self, app: App, jti: str, expires_at: datetime) -> bool:
        """Use up the assertion of an app with this `jti`; False when it was used before."""
        values = {
            "tenant": app.tenant,
            "app_id": app.id,
            "jti_hash": hashlib.sha256(jti.encode()).hexdigest(),
            "expires_at": expires_at,
            "revision": 1,
        }
        return await insert(self._connection, AppAssertionRow, values)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Forget tokens and assertions that ended before then, at most `limit` of each; returns how many."""
        token = (col(AppTokenRow.tenant), col(AppTokenRow.id))
        ended = select(*token).where(col(AppTokenRow.expires_at) < before).limit(limit)
        gone = await self._run(delete(AppTokenRow).where(tuple_(*token).in_(ended)))
        used = (col(AppAssertionRow.tenant), col(AppAssertionRow.app_id), col(AppAssertionRow.jti_hash))
        over = select(*used).where(col(AppAssertionRow.expires_at) < before).limit(limit)
        return gone + await self._run(delete(AppAssertionRow).where(tuple_(*used).in_(over)))


class KeySessions(AuthenticatedRepository[KeySession, SessionId]):
    """The console's sessions of API keys."""

    _table, _model = KeySessionRow, KeySession

    async def add(self, session: KeySession) -> None:
        await self._add(session, f"Session {session.id}")

    async def find(self, id: SessionId) -> KeySession | None:
        """The session with this id in whichever tenant, expired or not. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(id=id)

    async def delete(self, session: KeySession) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"Session {session.id}", tenant=session.tenant, id=session.id)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete sessions that ended before then, at most `limit`; returns how many."""
        key = (col(KeySessionRow.tenant), col(KeySessionRow.id))
        ended = select(*key).where(col(KeySessionRow.expires_at) < before).limit(limit)
        return await self._run(delete(KeySessionRow).where(tuple_(*key).in_(ended)))
