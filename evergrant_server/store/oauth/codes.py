"""Authorization codes: each is used once, and remembered past its end so that a second use is recognized."""

from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlmodel import col

from evergrant_server.core.ids import AuthorizationCodeId
from evergrant_server.core.oauth.authorizations import AuthorizationCode
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.oauth.tables import AuthorizationCodeRow


class AuthorizationCodes(AuthenticatedRepository[AuthorizationCode, AuthorizationCodeId]):
    _table, _model = AuthorizationCodeRow, AuthorizationCode

    async def add(self, code: AuthorizationCode) -> None:
        await self._add(code, f"Code {code.id}")

    async def by_hash(self, code_hash: str) -> AuthorizationCode | None:
        """The code with this hash in whichever tenant, used or not. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(code_hash=code_hash)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete codes that expired before this moment, `limit` at the most; returns how many."""
        key = (col(AuthorizationCodeRow.tenant), col(AuthorizationCodeRow.id))
        old = select(*key).where(col(AuthorizationCodeRow.expires_at) < before).limit(limit)
        return await self._run(delete(AuthorizationCodeRow).where(tuple_(*key).in_(old)))
