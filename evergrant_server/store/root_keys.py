"""The root keys of the installation: which service wraps each, and which one of a purpose seals."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import LargeBinary, select
from sqlmodel import Field, col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyRing
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.root_keys import INSTALLATION, RootKey, RootState
from evergrant_server.store.authority.authenticators import (
    AuthenticatedRepository,
    authentic,
    was_put_back,
)
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    Values,
    columns_equal,
    fetch_all,
    fetch_first,
    not_found,
    read_model,
)
from evergrant_server.store.revived_rows import put_back


class RootKeyRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.partial_index("uq_root_key_current", "purpose", where="state = 'current'", unique=True),
    )
    purpose: str
    service: str
    wrapped: bytes | None = Field(default=None, sa_type=LargeBinary)  # by the service, not by a key of a row
    state: str
    created_at: datetime = columns.timestamp()
    current_at: datetime | None = columns.timestamp()
    retired_at: datetime | None = columns.timestamp()
    mac: str | None = None


class StoredRoot(NamedTuple):
    """A row that isn't checked yet: what checks it is wrapped in a row itself."""

    root: RootKey
    wrapped: bytes | None
    row: Values

    @property
    def is_wrapped(self) -> bool:
        """Whether there is something that the service unwraps."""
        return self.wrapped is not None and self.root.state is not RootState.RETIRED


_CURRENT = select(col(RootKeyRow.id)).where(columns_equal(RootKeyRow, state=RootState.CURRENT.value))


def require_authentic(ring: KeyRing, stored: StoredRoot) -> None:
    """Raise Failure AUTHORITY_BROKEN unless Evergrant wrote the row."""
    authentic(ring, RootKey, RootKeyRow, stored.row)


class WrappedRoots(AuthenticatedRepository[RootKey, str]):
    """Rows of the installation, not of a tenant. Only operators and workers change them."""

    _table, _model = RootKeyRow, RootKey

    async def all(self) -> list[StoredRoot]:
        """Every row, the oldest first, unchecked: `require_authentic` checks one."""
        query = select(table_of(RootKeyRow)).order_by(col(RootKeyRow.created_at), col(RootKeyRow.id))
        rows = await fetch_all(self._connection, query)
        return [StoredRoot(read_model(RootKey, RootKeyRow, row), row["wrapped"], row) for row in rows]

    async def put_back(self, rows: Sequence[StoredRoot]) -> dict[str, Failure]:
        """Why these roots may not be used that were retired, by their ids: their rows deny it."""
        ids = await put_back(self._connection, [stored.root for stored in rows])
        return {id: was_put_back(RootKeyRow, id) for id in ids}

    async def add(self, root: RootKey, wrapped: bytes | None) -> RootKey:
        """Add a root. `wrapped` None: it lies in the key file.

        Raises Failure ALREADY_EXISTS, also for a second current one of its purpose.
        """
        return await self._add(
            root, f"A current root key of purpose {root.purpose}, or {root.id},", wrapped=wrapped
        )

    async def make_current(self, id: str, now: datetime) -> RootKey:
        """Have this root seal from now on; the one before only opens.

        Raises Failure NOT_FOUND, STORE_CONFLICT.
        """
        root = await self._found(id)
        before = await fetch_first(
            self._connection,
            select(table_of(RootKeyRow)).where(
                columns_equal(RootKeyRow, purpose=root.purpose.value, state=RootState.CURRENT.value)
            ),
        )
        if before is not None:
            current = authentic(self._ring, RootKey, RootKeyRow, before)
            await self._change(current.__replace__(state=RootState.OPEN), current.revision)
        return await self._change(root.__replace__(state=RootState.CURRENT, current_at=now), root.revision)

    async def retire(self, id: str, now: datetime) -> RootKey:
        """Destroy what the row wraps: nothing opens with this root any more. Raises as `make_current`."""
        root = await self._found(id)
        retired = root.__replace__(state=RootState.RETIRED, retired_at=now)
        return await self._change(retired, root.revision, wrapped=None)

    async def require_current(self, root_id: str, purpose: ServicePurpose) -> None:
        """Raise Failure KEY_UNAVAILABLE unless this root seals, until the end of the transaction.

        Where there are no rows of the purpose, the key file says which root seals.
        """
        of_purpose = columns_equal(RootKeyRow, purpose=purpose.value)
        current = await fetch_first(self._connection, _CURRENT.where(of_purpose).with_for_update(read=True))
        if current is not None and current["id"] == root_id:
            return
        if current is None and not await self._has_rows(purpose):
            return
        self._ring.when_outdated()
        why = f"The root key {root_id} of purpose {purpose} doesn't seal any more; the keys are read anew."
        raise Failure(ErrorCode.KEY_UNAVAILABLE, why, retry_after=1.0)

    async def _has_rows(self, purpose: ServicePurpose) -> bool:
        query = select(col(RootKeyRow.id)).where(columns_equal(RootKeyRow, purpose=purpose.value)).limit(1)
        return await fetch_first(self._connection, query) is not None

    async def _found(self, id: str) -> RootKey:
        root = await self.get(INSTALLATION, id)
        if root is None:
            raise not_found(f"The root key {id}")
        return root
