"""Sessions of people."""

from datetime import datetime

from sqlalchemy import delete, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import SessionId, Tenant
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.people.tables import PersonSessionRow


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

    async def end(self, tenant: Tenant, id: SessionId, at: datetime) -> PersonSession | None:
        """End it, also one with a broken authenticator; None if it has ended. Raises Failure NOT_FOUND."""
        session = await self._one_unchecked(tenant=tenant, id=id)
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
