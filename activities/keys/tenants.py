"""Rotations of a tenant's own keys, and of its connections'."""

from collections.abc import Awaitable

from activities.keys.steps import KeyRotation, with_page
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.resealing import Moved, purposes_of_connections
from evergrant_server.store.rotation.tenant_keys import Destroyed

_ROWS_OF_CONNECTION = 16  # of a page: keys and values, which are made and sealed anew, not only wrapped


class TenantRotation(KeyRotation):
    """A tenant's own keys, of one purpose after another."""

    def __init__(self, store: Store, call: KeyRotationCall, page_rows: int) -> None:
        super().__init__(store, call, page_rows)
        self._purposes = _purposes_of(call)

    async def total(self) -> int:
        async with self._store.read() as tx:
            return sum([await tx.tenant_keys.count_all(self._tenant, purpose) for purpose in self._purposes])

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> int:
            id = self._call.rotation_id
            return sum(
                [await tx.tenant_keys.replace(self._tenant, purpose, id) for purpose in self._purposes]
            )

        replaced = await self.write(work)
        await self.settled()  # no transaction seals with the older ones from here on
        return await self.following(progress.__replace__(replaced=progress.replaced + replaced))

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        if not progress.after:
            progress = progress.__replace__(after=(self._purposes[0],))
        purpose, *behind = progress.after
        of = KeyPurpose(purpose)
        moved = await self.write(
            lambda tx: tx.tenant_keys.move(self._tenant, of, tuple(behind), self._page_rows)
        )
        progress = with_page(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=(purpose, *moved.after))
        later = self._purposes[self._purposes.index(of) + 1 :]
        return progress.__replace__(after=(later[0],)) if later else await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async with self._store.read() as tx:
            left = [await tx.tenant_keys.count_left(self._tenant, purpose) for purpose in self._purposes]
        return await self.counted(progress, sum(left))

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> Destroyed:
            pages = [await tx.tenant_keys.destroy(self._tenant, purpose) for purpose in self._purposes]
            return Destroyed(sum(page.keys for page in pages), sum(page.kept for page in pages))

        return await self.destroyed(progress.__replace__(kept=0), await self.write(work))


class ConnectionRotation(KeyRotation):
    """The keys of a tenant's connections, or of one, in the order of their ids."""

    def __init__(self, store: Store, call: KeyRotationCall, page_rows: int) -> None:
        super().__init__(store, call, page_rows)
        self._purposes = tuple(
            purpose for purpose in _purposes_of(call) if purpose in purposes_of_connections()
        )
        self._connections = max(1, page_rows // _ROWS_OF_CONNECTION)

    async def total(self) -> int:
        async with self._store.read() as tx:
            return await tx.connection_keys.count_all(self._tenant, self._purposes, self._call.connection_id)

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        call, only = self._call, self._call.connection_id
        async with self._store.read() as tx:
            after = progress.after[0] if progress.after else ""
            page = await tx.connection_keys.page(self._tenant, after, self._connections)
        ids = page if only is None else [only]

        def work(tx: Transaction) -> Awaitable[Moved]:
            rotation = (call.rotation_id, call.begun_at)
            return tx.connection_keys.replace(self._tenant, ids, self._purposes, *rotation)

        moved = await self.write(work) if ids else Moved()
        progress = with_page(progress, moved)
        progress = progress.__replace__(replaced=progress.replaced + moved.rows)
        if only is None and len(page) == self._connections:
            return progress.__replace__(after=(page[-1],))
        return self.repeated(progress) if progress.skipped else await self.following(progress)

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        moved = await self.write(lambda tx: tx.connection_keys.move(self._tenant, after, self._page_rows))
        if RotationStep.REPLACE in self._steps:  # which has named what no key opens
            moved = moved._replace(broken=())
        progress = with_page(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=moved.after)
        return await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        async with self._store.read() as tx:
            page = await tx.connection_keys.count_left(self._tenant, after, self._page_rows)
        left = page.kept + (progress.left if progress.after else 0)
        if page.after is not None:
            return progress.__replace__(after=(page.after,), left=left)
        return await self.counted(progress, left)

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        page = await self.write(lambda tx: tx.connection_keys.destroy(self._tenant, after, self._page_rows))
        return await self.destroyed(progress if after else progress.__replace__(kept=0), page)


def _purposes_of(call: KeyRotationCall) -> tuple[KeyPurpose, ...]:
    return tuple(map(KeyPurpose, call.purposes)) or tuple(KeyPurpose)
