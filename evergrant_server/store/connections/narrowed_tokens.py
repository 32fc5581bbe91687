"""Narrower access tokens of a main grant, in slots of their own: each for one set of requested scopes.

They end with the access token that they stand beside. `Grants.install` deletes them.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MOST_NARROWED, NARROWED, Grant
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store.connections.grants import ACCESS_COLUMN, grant_associated_data, signed_grant
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.rows import Values, column_values, columns_equal, fetch_first, insert
from evergrant_server.store.sealing import SealedRepository

_SLOT, _EXPIRES = col(ConnectionGrantRow.slot), col(ConnectionGrantRow.expires_at)


class NarrowedTokens(SealedRepository):
    async def put(self, owner: Connection, grant: Grant, token: Secret | None, now: datetime) -> None:
        """Keep the token of a narrower grant, in the place of the one before and of those that have ended.

        Without a token: the provider refused these scopes, and isn't asked again before the grant ends. Of
        more than `MOST_NARROWED` the oldest is forgotten. Needs the lease purpose.
        """
        mine = _of(owner.tenant, owner.id)
        newest = select(_SLOT).where(*mine, _SLOT.not_in([grant.slot]), _lasts(now))
        newest = newest.order_by(col(ConnectionGrantRow.generation).desc(), _SLOT).limit(MOST_NARROWED - 1)
        await self._run(delete(ConnectionGrantRow).where(*mine, _SLOT.not_in(newest)))
        columns = column_values(grant)
        values: Values = {
            "facts": columns.pop("metadata"),
            **columns,
            "tenant": owner.tenant,
            "connection_id": owner.id,
            "mac": signed_grant(self._sealer.ring, owner, grant),
            "revision": 1,
        }
        if token is not None:
            place = grant_associated_data(owner.tenant, owner.id, grant.slot, ACCESS_COLUMN, grant.generation)
            values[ACCESS_COLUMN] = await self._sealer.seal(KeyPurpose.LEASE, owner.id, place, token)
        await insert(self._connection, ConnectionGrantRow, values)

    async def full_until(
        self, tenant: Tenant, connection_id: ConnectionId, slot: str, now: datetime
    ) -> datetime | None:
        """When the first one ends, where a connection has no room for one more slot. None: it has."""
        live = (*_of(tenant, connection_id), _SLOT.not_in([slot]), _lasts(now))
        query = select(func.count().label("held"), func.min(_EXPIRES).label("ends")).where(*live)
        row = await fetch_first(self._connection, query)
        return row["ends"] if row is not None and row["held"] >= MOST_NARROWED else None


def _of(tenant: Tenant, connection_id: ConnectionId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    mine = columns_equal(ConnectionGrantRow, tenant=tenant, connection_id=connection_id)
    return mine, _SLOT.startswith(NARROWED)


def _lasts(now: datetime) -> ColumnElement[bool]:
    return or_(_EXPIRES.is_(None), now < _EXPIRES)
