"""Grants and their tokens, sealed per connection: access in the lease lane, the rest in refresh."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Label, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import MAIN, Grant, Origin, TokenSet
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Lane, Place, Sealed
from evergrant_server.crypto.envelope import broken
from evergrant_server.store.late_answers import LateAnswers
from evergrant_server.store.marks import Marks
from evergrant_server.store.proof_keys import ProofKeys
from evergrant_server.store.records import Values, compare_and_set, first, insert, one, values_of, where
from evergrant_server.store.seals import Seals
from evergrant_server.store.tables import ConnectionGrantRow, ConnectionRow, ConsentRow

ACCESS, REFRESH, ID_TOKEN = "sealed_access", "sealed_refresh", "sealed_id_token"


def grant_place(tenant: str, connection_id: str, chain: str, column: str, generation: int) -> Place:
    """Where a token lives. The generation is part of it: an older token doesn't open in its place."""
    return Place(tenant, "connection_grant", f"{connection_id}/{chain}", column, generation)


def grant_of(row: Mapping[str, Any]) -> Grant:
    return Grant.model_validate({**row, "metadata": row["facts"]})


class Grants:
    """Grants of one transaction."""

    def __init__(self, connection: AsyncConnection, seals: Seals) -> None:
        self._connection = connection
        self._seals = seals

    async def get(self, tenant: Tenant, connection_id: ConnectionId, chain: str = MAIN) -> Grant | None:
        row = await one(
            self._connection, ConnectionGrantRow, tenant=tenant, connection_id=connection_id, chain=chain
        )
        return None if row is None else grant_of(row)

    async def install(
        self, after: Connection, tokens: TokenSet, grant: Grant, *, origin: Origin, expected: int
    ) -> Connection:
        """Write the connection `after` and its new grant in one go, if the row is still at `expected`.

        The main chain's grant has the connection's generation; other chains count their own.

        A refresh without a refresh token or id token in its reply keeps the old one (RFC 6749 section
        6, OpenID Connect Core section 12.2); a new grant inherits none. Needs the lease and refresh
        lanes. Raises Failure STORE_CONFLICT, NOT_FOUND, KEY_UNAVAILABLE.
        """
        if grant.chain == MAIN and grant.generation != after.generation:
            raise ValueError("a main grant is installed with the generation of its connection")
        key = {"tenant": after.tenant, "id": after.id}
        revision = await compare_and_set(self._connection, ConnectionRow, key, values_of(after), expected)
        old = await self._row(after, grant.chain)
        kept = old if origin is Origin.REFRESH else None
        columns = values_of(grant)
        values: Values = {
            "facts": columns.pop("metadata"),
            **columns,
            "tenant": after.tenant,
            "connection_id": after.id,
            ACCESS: await self._sealed(Lane.LEASE, after, grant, ACCESS, tokens.access_token),
            REFRESH: await self._kept(after, grant, REFRESH, tokens.refresh_token, kept),
            ID_TOKEN: await self._kept(after, grant, ID_TOKEN, tokens.id_token, kept),
            "revision": 1 if old is None else old["revision"] + 1,
        }
        await self._put(values, old)
        await LateAnswers(self._connection, self._seals).drop(after.tenant, after.id)  # superseded
        if grant.chain == MAIN:
            await Marks(self._connection, self._seals.ring).follow(after, tokens, grant, origin)
        return after.model_copy(update={"revision": revision})

    async def access_token(self, grant_owner: Connection, chain: str = MAIN) -> Secret:
        """The access token held now. Raises Failure CONSENT_REQUIRED when there is none,
        STORE_CONFLICT when `grant_owner` is older than the row, SEAL_BROKEN when the row is."""
        token = await self._open(Lane.LEASE, grant_owner, chain, ACCESS)
        if token is None:
            raise Failure(Code.CONSENT_REQUIRED, f"{grant_owner.id} holds no access token.")
        return token

    async def refresh_token(self, connection: Connection, chain: str = MAIN) -> Secret | None:
        """The refresh token, or None. Raises Failure KEY_UNAVAILABLE without the refresh lane."""
        return await self._open(Lane.REFRESH, connection, chain, REFRESH)

    async def id_token(self, connection: Connection, chain: str = MAIN) -> Secret | None:
        """The newest id token, or None. Raises Failure KEY_UNAVAILABLE without the refresh lane."""
        return await self._open(Lane.REFRESH, connection, chain, ID_TOKEN)

    async def tell(self, connection: Connection, grant: Grant) -> None:
        """Write what was found out of a grant, its facts and options, in a transaction that has changed
        its connection."""
        mine = where(ConnectionGrantRow, tenant=connection.tenant, connection_id=connection.id, chain=MAIN)
        told: Values = {
            "facts": grant.metadata,
            "options": [option.model_dump() for option in grant.options],
            "revision": col(ConnectionGrantRow.revision) + 1,
        }
        await self._connection.execute(update(ConnectionGrantRow).where(mine).values(told))

    async def shred(self, tenant: Tenant, connection_id: ConnectionId) -> int:
        """Destroy the connection's keys, of every lane, and every sealed column of it; facts stay.

        Says how many keys there were.
        """
        destroyed = await self._seals.destroy(tenant, connection_id)
        await Marks(self._connection, self._seals.ring).forget(tenant, connection_id)
        await ProofKeys(self._connection, self._seals).drop(tenant, connection_id)
        mine = {"tenant": tenant, "connection_id": connection_id}
        empty: Values = {
            ACCESS: None,
            REFRESH: None,
            ID_TOKEN: None,
            "revision": col(ConnectionGrantRow.revision) + 1,
        }
        await self._connection.execute(
            update(ConnectionGrantRow).where(where(ConnectionGrantRow, **mine)).values(empty)
        )
        columns = (
            "sealed_link",
            "sealed_verifier",
            "sealed_code",
            "sealed_tokens",
            "sealed_device",
            "sealed_request",
        )
        await LateAnswers(self._connection, self._seals).drop(tenant, connection_id)
        consents: Values = dict.fromkeys(columns)
        await self._connection.execute(update(ConsentRow).where(where(ConsentRow, **mine)).values(consents))
        return destroyed

    async def _put(self, values: Values, old: Mapping[str, Any] | None) -> None:
        key = {name: values[name] for name in ("tenant", "connection_id", "chain")}
        if old is not None:
            await compare_and_set(self._connection, ConnectionGrantRow, key, values, old["revision"])
        elif not await insert(self._connection, ConnectionGrantRow, values):
            raise Failure(Code.STORE_CONFLICT, f"{key['connection_id']} was granted meanwhile.")

    async def _kept(
        self, after: Connection, grant: Grant, column: str, new: Secret | None, kept: Mapping[str, Any] | None
    ) -> Sealed | None:
        """Seal the new token, or the kept one again for its new generation."""
        if new is None and kept is not None and kept[column] is not None:
            place = grant_place(after.tenant, after.id, grant.chain, column, kept["generation"])
            new = await self._seals.open(Lane.REFRESH, after.id, place, kept[column])
        if new is None:
            return None
        return await self._sealed(Lane.REFRESH, after, grant, column, new)

    async def _sealed(
        self, lane: Lane, owner: Connection, grant: Grant, column: str, value: Secret
    ) -> Sealed:
        place = grant_place(owner.tenant, owner.id, grant.chain, column, grant.generation)
        return await self._seals.seal(lane, owner.id, place, value)

    async def _open(self, lane: Lane, owner: Connection, chain: str, column: str) -> Secret | None:
        row = await self._row(owner, chain)
        if row is None or row[column] is None:
            return None
        place = grant_place(owner.tenant, owner.id, chain, column, row["generation"])
        if put_back(chain, row["generation"], row["connection_generation"]):
            raise broken(place, "belongs to another generation than its connection")
        if row["connection_generation"] != owner.generation:
            raise Failure(Code.STORE_CONFLICT, f"{owner.id} is no longer at generation {owner.generation}.")
        return await self._seals.open(lane, owner.id, place, row[column])

    async def _row(self, owner: Connection, chain: str) -> Mapping[str, Any] | None:
        same = (col(ConnectionRow.tenant) == col(ConnectionGrantRow.tenant)) & (
            col(ConnectionRow.id) == col(ConnectionGrantRow.connection_id)
        )
        mine = where(ConnectionGrantRow, tenant=owner.tenant, connection_id=owner.id, chain=chain)
        generation: Label[int] = col(ConnectionRow.generation).label("connection_generation")
        query = select(ConnectionGrantRow, generation).join(ConnectionRow, same).where(mine)
        return await first(self._connection, query)


def put_back(chain: str, grant_generation: int, connection_generation: int) -> bool:
    """True when a main grant isn't its connection's newest: somebody put an older row back.

    A connection's generation is its main chain's; other chains are numbered on their own.
    """
    return chain == MAIN and grant_generation != connection_generation
