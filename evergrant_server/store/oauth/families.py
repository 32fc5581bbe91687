"""Families of tokens, their refresh tokens and access tokens."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, or_, select, tuple_, update
from sqlmodel import col

from evergrant_server.core.ids import AccessTokenId, RefreshTokenId, Tenant, TokenFamilyId
from evergrant_server.core.oauth.authorizations import AccessToken, RefreshToken, TokenFamily
from evergrant_server.core.secret import Secret
from evergrant_server.store.access import AppKeyUseRow, AppRow
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, not_found
from evergrant_server.store.oauth.tables import AccessTokenRow, RefreshTokenRow, TokenFamilyRow
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository

_SUCCESSOR = "sealed_successor"


class TokenFamilies(AuthenticatedRepository[TokenFamily, TokenFamilyId]):
    _table, _model = TokenFamilyRow, TokenFamily

    async def add(self, family: TokenFamily) -> None:
        await self._add(family, f"Family {family.id}")

    async def locked(self, tenant: Tenant, id: TokenFamilyId) -> TokenFamily | None:
        """The family, which no other transaction changes until this one ends. Raises Failure
        AUTHORITY_BROKEN."""
        return await self._first(self._where(tenant=tenant, id=id).with_for_update())

    async def to_end(self, tenant: Tenant, id: TokenFamilyId) -> TokenFamily | None:
        """The family as its row says, with a broken authenticator too: to end one repairs that."""
        return await self._one_unchecked(tenant=tenant, id=id)

    async def page(
        self, tenant: Tenant, after: str | None, limit: int, **equal: str | None
    ) -> list[TokenFamily]:
        """Families sorted by id, after the id `after`, with these values of columns. Not checked."""
        columns = {name: value for name, value in equal.items() if value is not None}
        return await self._page(self._where(tenant=tenant, **columns), "id", after, limit)

    async def live(self, tenant: Tenant, limit: int, **equal: str | None) -> list[TokenFamily]:
        """Families that haven't ended, with these values of columns. Not checked."""
        mine = self._where(*self._live(tenant, equal))
        return await self._all_unchecked(mine.order_by(col(TokenFamilyRow.id)).limit(limit))

    async def count_live(self, tenant: Tenant, now: datetime, **equal: str | None) -> int:
        live = (*self._live(tenant, equal), col(TokenFamilyRow.expires_at) > now)
        query = select(func.count()).select_from(TokenFamilyRow).where(*live)
        return int((await self._connection.execute(query)).scalar_one())

    async def last_calls(self, tenant: Tenant, ids: Collection[str]) -> dict[str, datetime]:
        """When an access token of each last authenticated a request, by the family's id, to the minute."""
        use = AppKeyUseRow
        query = select(col(use.key_id), col(use.used_at))
        query = query.where(columns_equal(use, tenant=tenant), col(use.key_id).in_(ids))
        return {id: at for id, at in await self._connection.execute(query)}

    async def app_names(self, tenant: Tenant, ids: Collection[str]) -> dict[str, str]:
        """The names of these apps, by their ids. Not checked."""
        query = select(col(AppRow.id), col(AppRow.name))
        query = query.where(columns_equal(AppRow, tenant=tenant), col(AppRow.id).in_(ids))
        return {id: name for id, name in await self._connection.execute(query)}

    async def judge_again(self, client_id: str) -> None:
        """Have all calls of a client, in every tenant, judged again: the revisions of its apps move."""
        row, app = TokenFamilyRow, AppRow
        live = columns_equal(row, client_id=client_id) & col(row.ended_at).is_(None)
        acts = select(col(row.tenant), col(row.app_id)).where(live)
        mine = tuple_(col(app.tenant), col(app.id)).in_(acts)
        await self._run(update(app).where(mine).values({"revision": col(app.revision) + 1}))

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete families that ended or grew too old before then, with their tokens, `limit` at the most;
        returns how many."""
        row, use = TokenFamilyRow, AppKeyUseRow
        key = (col(row.tenant), col(row.id))
        old = select(*key).where(or_(col(row.expires_at) < before, col(row.ended_at) < before)).limit(limit)
        gone = [tuple(place) for place in await self._connection.execute(old)]
        await self._run(delete(use).where(tuple_(col(use.tenant), col(use.key_id)).in_(gone)))
        return await self._run(delete(row).where(tuple_(*key).in_(gone)))

    @staticmethod
    def _live(tenant: Tenant, equal: dict[str, str | None]) -> tuple[ColumnElement[bool], ...]:
        columns = {name: value for name, value in equal.items() if value is not None}
        mine = columns_equal(TokenFamilyRow, tenant=tenant, **columns)
        return mine, col(TokenFamilyRow.ended_at).is_(None)


class RefreshTokens(
    IntakeRepository[RefreshToken, RefreshTokenId], AuthenticatedRepository[RefreshToken, RefreshTokenId]
):
    """Refresh tokens; the text of a used one's successor is sealed by the tenant's intake key."""

    _table, _model = RefreshTokenRow, RefreshToken

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(self, token: RefreshToken) -> None:
        await self._add(token, f"Refresh token {token.id}")

    async def find(self, id: RefreshTokenId) -> RefreshToken | None:
        """The token with this id in whichever tenant, used or not. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(id=id)

    async def rotated(self, token: RefreshToken, successor: RefreshToken, text: Secret) -> RefreshToken:
        """Use a token up and add its successor, whose text is kept. Raises Failure STORE_CONFLICT."""
        await self.add(successor)
        sealed = await self._sealed(token, {_SUCCESSOR: text})
        return await self._change(
            token.__replace__(rotated_at=successor.created_at, successor_id=successor.id),
            token.revision,
            **sealed,
        )

    async def successor(self, token: RefreshToken) -> Secret:
        """The text of its successor. Raises Failure NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE."""
        text = await self._opened(token, _SUCCESSOR)
        if text is None:
            raise not_found(f"the successor of {token.id}")
        return text


class OAuthTokens(AuthenticatedRepository[AccessToken, AccessTokenId]):
    """Access tokens. Their MAC covers every field, but a gateway, which checks it, could make one too."""

    _table, _model = AccessTokenRow, AccessToken

    async def add(self, token: AccessToken) -> None:
        await self._add(token, f"Access token {token.id}")

    async def find(self, id: AccessTokenId) -> AccessToken | None:
        """The token with this id in whichever tenant, expired or not. Raises Failure AUTHORITY_BROKEN."""
        return await self._one(id=id)

    async def count_valid(self, tenant: Tenant, family_id: TokenFamilyId, now: datetime) -> int:
        mine = columns_equal(AccessTokenRow, tenant=tenant, family_id=family_id)
        query = select(func.count()).select_from(AccessTokenRow)
        query = query.where(mine, col(AccessTokenRow.expires_at) > now)
        return int((await self._connection.execute(query)).scalar_one())

    async def delete(self, token: AccessToken) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"Access token {token.id}", tenant=token.tenant, id=token.id)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete access tokens that expired before this moment, `limit` at the most; returns how many."""
        key = (col(AccessTokenRow.tenant), col(AccessTokenRow.id))
        old = select(*key).where(col(AccessTokenRow.expires_at) < before).limit(limit)
        return await self._run(delete(AccessTokenRow).where(tuple_(*key).in_(old)))
