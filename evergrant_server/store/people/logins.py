"""Where people log in, and their logins that are under way."""

from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlmodel import col

from evergrant_server.core.ids import AdminLoginId, PersonLoginId, Tenant
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.secret import Secret
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, not_found
from evergrant_server.store.people.tables import AdminLoginRow, PersonLoginRow
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

_VERIFIER, _CODE = "sealed_verifier", "sealed_code"


class AdminLogins(AuthenticatedRepository[AdminLogin, AdminLoginId]):
    _table, _model = AdminLoginRow, AdminLogin

    async def of_tenant(self, tenant: Tenant) -> AdminLogin | None:
        return await self._one(tenant=tenant)

    async def to_replace(self, tenant: Tenant) -> AdminLogin | None:
        """The rule as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant)

    async def put(self, rule: AdminLogin) -> AdminLogin:
        """In place of the tenant's rule of before, also of one with a broken authenticator."""
        await self._run(delete(AdminLoginRow).where(columns_equal(AdminLoginRow, tenant=rule.tenant)))
        return await self._add(rule, "The login of people")

    async def delete(self, tenant: Tenant) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete("the login of people", tenant=tenant)


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
