"""A tenant's own keys in a move: unwrapped by the source's roots, wrapped by the target's."""

import base64

from sqlalchemy import select

from evergrant_server.core.cells.moves import TenantKey
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyPurpose, KeyRing, SealingKey, key_id_of
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Repository, columns_equal, fetch_all, insert
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, key_associated_data


class MovedKeys(Repository):
    """The keys under which everything sealed of a tenant stands. Needs a ring with every purpose."""

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def offered(self, tenant: Tenant) -> tuple[TenantKey, ...]:
        """Each key of the tenant in plain, to be sealed to the other cell.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN.
        """
        mine = columns_equal(KeyRow, tenant=tenant, connection_id=NO_CONNECTION)
        of_stories = table_of(KeyRow).c.purpose == KeyPurpose.STORY.value  # they stay with the histories
        rows = await fetch_all(self._connection, select(table_of(KeyRow)).where(mine, ~of_stories))
        keys: list[TenantKey] = []
        for row in rows:
            purpose = KeyPurpose(row["purpose"])
            place = key_associated_data(tenant, row["id"], purpose, NO_CONNECTION)
            opened = self._ring.unwrap(purpose, place, row["id"], row["sealed_key"])
            text = base64.b64encode(opened.reveal()).decode()
            moments = {name: row[name] for name in ("created_at", "retired_at")}
            keys.append(TenantKey(id=row["id"], purpose=purpose, key=text, **moments))
        return tuple(keys)

    async def take(self, tenant: Tenant, keys: tuple[TenantKey, ...]) -> None:
        """Wrap the keys of another cell's tenant under this cell's roots. Raises Failure KEY_UNAVAILABLE."""
        for key in keys:
            purpose = KeyPurpose(key.purpose)
            place = key_associated_data(tenant, key.id, purpose, NO_CONNECTION)
            wrapped = self._ring.wrap(purpose, place, SealingKey(key.id, base64.b64decode(key.key)))
            row = {
                **{"tenant": tenant, "revision": 1, "id": key.id, "purpose": purpose.value},
                **{"connection_id": NO_CONNECTION, "wrapping_key_id": key_id_of(wrapped, place)},
                **{"sealed_key": wrapped, "created_at": key.created_at, "retired_at": key.retired_at},
            }
            await insert(self._connection, KeyRow, row)

    async def has(self, tenant: Tenant, id: str) -> bool:
        """Whether a tenant's own key is here."""
        mine = columns_equal(KeyRow, tenant=tenant, id=id, connection_id=NO_CONNECTION)
        return bool(await fetch_all(self._connection, select(table_of(KeyRow).c.id).where(mine)))
