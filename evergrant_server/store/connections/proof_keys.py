"""The key that a connection's tokens are bound to (DPoP, RFC 9449), sealed per connection."""

from datetime import datetime

from evergrant_server.core.connections.credentials import ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.crypto import AssociatedData, KeyPurpose, new_proof_key
from evergrant_server.store.connections.tables import ProofKeyRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, find_one, insert
from evergrant_server.store.keys import sealed_place
from evergrant_server.store.sealing import KeyRows, SealedRepository

_COLUMN = "sealed_key"


class ProofKeys(SealedRepository):
    """The key of a connection's tokens. In the lease purpose: the API makes the proofs."""

    async def get(self, tenant: Tenant, connection_id: ConnectionId) -> ProofKey | None:
        """Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, ProofKeyRow, tenant=tenant, connection_id=connection_id)
        if row is None:
            return None
        opened = await self._sealer.open(
            KeyPurpose.LEASE, connection_id, _place(tenant, connection_id), row[_COLUMN]
        )
        return ProofKey.from_secret(opened)

    async def get_or_create(self, tenant: Tenant, connection_id: ConnectionId, now: datetime) -> ProofKey:
        """The key there is, or a new one; when another writer was faster, theirs. Raises as `get`."""
        key = await self.get(tenant, connection_id)
        if key is not None:
            return key
        made, place = new_proof_key(), _place(tenant, connection_id)
        values: Values = {
            "tenant": tenant,
            "connection_id": connection_id,
            "thumbprint": made.thumbprint,
            _COLUMN: await self._sealer.seal(KeyPurpose.LEASE, connection_id, place, made.as_secret()),
            "created_at": now,
            "revision": 1,
        }
        await insert(self._connection, ProofKeyRow, values)
        stored = await self.get(tenant, connection_id)
        if stored is None:
            raise Failure(ErrorCode.STORE_CONFLICT, f"The proof key of {connection_id} is gone again.")
        return stored


def opened_proof_key(keys: KeyRows, row: Values) -> ProofKey:
    """The key of this row. Raises as `ProofKeys.get`."""
    place = _place(row["tenant"], row["connection_id"])
    return ProofKey.from_secret(keys.open(KeyPurpose.LEASE, row["connection_id"], place, row[_COLUMN]))


def _place(tenant: Tenant, connection_id: ConnectionId) -> AssociatedData:
    row = {"tenant": tenant, "connection_id": connection_id}
    return sealed_place(table_of(ProofKeyRow), _COLUMN, row)
