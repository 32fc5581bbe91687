"""Rotation of the installation's roots of one purpose: a new one, or what stands under older ones moved.

Where a key service wraps roots, a new one is a row. Roots that lie in the key file are added on its host, by
`keys rotate`, and stay in it, for older backups; a rotation moves what stands under them.
"""

from collections.abc import Awaitable, Sequence

from activities.keys.steps import KeyRotation, with_page
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import KeyPurpose, new_sealing_key
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import Context, ServicePurpose
from evergrant_server.crypto.root_keys import RootKey, RootState
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.processes import Process, lacking, may_seal_with_another
from evergrant_server.store.rotation.resealing import Moved
from evergrant_server.store.rotation.tenant_keys import derived_key_id

_MOVING = (RotationStep.MOVE, RotationStep.COUNT, RotationStep.DESTROY)


class RootRotation(KeyRotation):
    """Of the first of the call's purposes."""

    def __init__(
        self, store: Store, call: KeyRotationCall, page_rows: int, services: Sequence[BoundKeyService]
    ) -> None:
        super().__init__(store, call, page_rows)
        self._root = self._purposes[0].of_roots
        self._sealing = tuple(purpose for purpose in KeyPurpose if purpose.of_roots is self._root)
        self._services = services
        self._new_id = derived_key_id("root", call.rotation_id, self._root)

    @property
    def _current_id(self) -> str:
        """The root that this process seals with."""
        return self._store.ring.current_root_id(self._root)

    @property
    def _service_purpose(self) -> ServicePurpose:
        return ServicePurpose(self._root)

    def _seals(self, root: RootKey) -> bool:
        return root.purpose is self._service_purpose and root.state is RootState.CURRENT

    async def total(self) -> int:
        async with self._store.read() as tx:
            return await tx.root_moves.count_all(self._sealing)

    async def prepare(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        if progress.step is RotationStep.ANNOUNCE:
            await self._announce()
            return await self.following(progress)
        waited_for = lacking(await self._processes(), self._root, self._new_id)
        return self._waiting(progress, waited_for) if waited_for else await self.following(progress)

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> bool:
            stored = {row.root.id: row.root for row in await tx.root_keys.all()}
            if stored[self._new_id].state is not RootState.ANNOUNCED:
                return False
            await tx.root_keys.make_current(self._new_id, tx.now)
            return True

        made = await self.write(work)
        self._store.ring.when_outdated()
        if self._current_id != self._new_id:  # this process reads it in a moment
            return self.repeated(progress.__replace__(replaced=progress.replaced + made))
        return await self.following(progress.__replace__(replaced=progress.replaced + made))

    async def advance(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """As of every rotation, once this process seals with the root that another has made current."""
        if progress.step in _MOVING:
            async with self._store.read() as tx:
                current = [row.root.id for row in await tx.root_keys.all() if self._seals(row.root)]
            if current and current != [self._current_id]:
                self._store.ring.when_outdated()
                return self.repeated(progress)
        return await super().advance(progress)

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        root_id, after = self._current_id, progress.after

        def work(tx: Transaction) -> Awaitable[Moved]:
            return tx.root_moves.move(self._sealing, root_id, after, self._page_rows)

        moved = await self.write(work)
        progress = with_page(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=moved.after)
        return await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async with self._store.read() as tx:
            left = await tx.root_moves.count_left(self._sealing, self._current_id)
        return await self.counted(progress, left)

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """Retire the older roots, once no process may seal with one."""
        root_id = self._current_id
        waited_for = may_seal_with_another(await self._processes(), self._root, root_id)
        if waited_for:
            return self._waiting(progress, waited_for)

        async def work(tx: Transaction) -> int:
            if await tx.root_moves.count_left(self._sealing, root_id):
                return -1
            older = [
                row.root
                for row in await tx.root_keys.all()
                if row.root.purpose is self._service_purpose and row.root.state is RootState.OPEN
            ]
            for root in older:
                await tx.root_keys.retire(root.id, tx.now)
            return len(older)

        retired = await self.write(work)
        if retired < 0:
            return self.repeated(progress.__replace__(step=RotationStep.MOVE, zeros=0))
        self._store.ring.when_outdated()
        return await self.following(progress.__replace__(destroyed=progress.destroyed + retired, kept=0))

    async def _announce(self) -> None:
        """Have the service wrap a new root, outside of any transaction, and add its row.

        Raises Failure INVALID_REQUEST where roots lie in the key file, and as the service does.
        """
        purpose = self._service_purpose
        async with self._store.read() as tx:
            rows = [row.root for row in await tx.root_keys.all() if row.root.purpose is purpose]
        if any(root.id == self._new_id for root in rows):
            return
        service = next(iter(self._services), None)
        if not rows or service is None:
            why = f"the roots of {self._root} lie in the key file: keys rotate {self._root}, on its host"
            raise Failure(ErrorCode.INVALID_REQUEST, why)
        key = new_sealing_key("root")
        wrapped = await service.wrap(purpose, key.reveal(), Context(self._new_id))

        async def work(tx: Transaction) -> None:
            root = RootKey(
                id=self._new_id,
                purpose=purpose,
                service=service.key_name(purpose),
                state=RootState.ANNOUNCED,
                created_at=tx.now,
            )
            if await tx.root_keys.get(root.tenant, root.id) is None:
                await tx.root_keys.add(root, wrapped)

        await self.write(work)
        self._store.ring.when_outdated()

    async def _processes(self) -> list[Process]:
        async with self._store.read() as tx:
            return await tx.processes.all()

    def _waiting(self, progress: KeyRotationProgress, waited_for: list[Process]) -> KeyRotationProgress:
        """The step again in a while: these processes have to do something first."""
        names = tuple(f"{process.role} {process.id} on {process.host}" for process in waited_for[:5])
        return self.repeated(progress).__replace__(waits_for=names)
