"""Answers kept for their `Idempotency-Key`; `api.http.call` decides when one is returned.

Bodies may hold connect links, so all are sealed.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Index, delete, select, tuple_
from sqlmodel import Field, col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import AssociatedData, KeyPurpose, Sealed
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, columns_equal, find_one, insert
from evergrant_server.store.erasure.orders import is_held
from evergrant_server.store.keys import NO_CONNECTION, sealed_place
from evergrant_server.store.sealing import SealedRepository


class IdempotencyRow(columns.TenantTable, table=True):
    __table_args__ = (Index(None, "stored_at"),)
    app_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_hash: str
    status: int
    sealed_body: Sealed = columns.sealed(columns.SealedBy(KeyPurpose.INTAKE, row=("app_id", "key")))
    stored_at: datetime = columns.timestamp()


@dataclass(frozen=True)
class StoredResponse:
    """An earlier response: the hash of its request, its HTTP status and its body's text."""

    request_hash: str
    status: int
    body: str

    def __repr__(self) -> str:
        return f"StoredResponse(status={self.status}, body=<{len(self.body)} characters>)"


class Idempotency(SealedRepository):
    """Stored responses, read and written in one transaction."""

    async def find(self, tenant: Tenant, app_id: AppId, key: str) -> StoredResponse | None:
        """The response stored for this key, or None. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, IdempotencyRow, tenant=tenant, app_id=app_id, key=key)
        if row is None:
            return None
        place = _place(tenant, app_id, key)
        body = await self._sealer.open(KeyPurpose.INTAKE, NO_CONNECTION, place, row["sealed_body"])
        return StoredResponse(row["request_hash"], row["status"], body.reveal())

    async def store(
        self, tenant: Tenant, app_id: AppId, key: str, request_hash: str, status: int, body: str, at: datetime
    ) -> None:
        """Store a response. Raises Failure IDEMPOTENCY_CONFLICT when the key was used for another
        request, STORE_CONFLICT when the same request was answered meanwhile: recall it."""
        place = _place(tenant, app_id, key)
        values: Values = {
            "tenant": tenant,
            "app_id": app_id,
            "key": key,
            "request_hash": request_hash,
            "status": status,
            "sealed_body": await self._sealer.seal(KeyPurpose.INTAKE, NO_CONNECTION, place, Secret(body)),
            "stored_at": at,
            "revision": 1,
        }
        if await insert(self._connection, IdempotencyRow, values):
            return
        first = await self.find(tenant, app_id, key)
        if first is not None and first.request_hash != request_hash:
            raise Failure(ErrorCode.IDEMPOTENCY_CONFLICT)
        raise Failure(ErrorCode.STORE_CONFLICT, "The same request was answered meanwhile.")

    async def stored(
        self, tenant: Tenant, app_id: AppId, prefix: str, limit: int
    ) -> list[tuple[str, datetime]]:
        """The app's keys that begin so, with when each was stored, newest first."""
        key, at = col(IdempotencyRow.key), col(IdempotencyRow.stored_at)
        mine = columns_equal(IdempotencyRow, tenant=tenant, app_id=app_id) & key.startswith(prefix)
        rows = await self._connection.execute(select(key, at).where(mine).order_by(at.desc()).limit(limit))
        return [(row[0], row[1]) for row in rows]

    async def forget(self, tenant: Tenant, app_id: AppId, key: str) -> None:
        """Delete the response of this key, if there is one."""
        mine = columns_equal(IdempotencyRow, tenant=tenant, app_id=app_id, key=key)
        await self._run(delete(IdempotencyRow).where(mine))

    async def prune(self, before: datetime, limit: int = 1000, *, now: datetime) -> int:
        """Forget answers given before this moment, `limit` at the most; returns how many. Those of a tenant
        under a legal hold stay."""
        key = (col(IdempotencyRow.tenant), col(IdempotencyRow.app_id), col(IdempotencyRow.key))
        ripe = (col(IdempotencyRow.stored_at) < before) & ~is_held(key[0], None, now)
        old = select(*key).where(ripe).limit(limit)
        return await self._run(delete(IdempotencyRow).where(tuple_(*key).in_(old)))


def _place(tenant: str, app_id: str, key: str) -> AssociatedData:
    row = {"tenant": tenant, "app_id": app_id, "key": key}
    return sealed_place(table_of(IdempotencyRow), "sealed_body", row)
