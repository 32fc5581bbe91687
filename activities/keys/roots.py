"""Rotation of the installation's roots of one purpose or several: new ones, or what stands under older ones
moved.

Where there are rows, a new root is a row, which the service wraps that the settings name first: so the same
rotation moves an installation from one key service to another. Roots that lie in the key file, without rows,
are added on its host, by `keys rotate`, and stay in it, for older backups; a rotation moves what stands under
them. What roles sign and derive with isn't replaced: a new row wraps it anew.
"""

from collections.abc import Awaitable, Sequence

from activities.keys.steps import KeyRotation, with_page
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import KeyPurpose, new_sealing_key
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyfile import bundle_bytes
from evergrant_server.crypto.root_keys import BUNDLE_PURPOSES, RootKey, RootState, announced_root
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.processes import Process, lacking, may_seal_with_another
from evergrant_server.store.rotation.resealing import Moved
from evergrant_server.store.rotation.tenant_keys import derived_key_id

_MOVING = (RotationStep.MOVE, RotationStep.COUNT, RotationStep.DESTROY)


class _Roots:
    """The roots of one purpose of a rotation, or the rows of what roles sign and derive with."""

    def __init__(self, store: Store, call: KeyRotationCall, purpose: ServicePurpose) -> None:
        self._store, self._call, self.purpose = store, call, purpose
        self.wraps_bundle = purpose in BUNDLE_PURPOSES
        self.sealing = tuple(each for each in KeyPurpose if each.of_roots == purpose)
        prefix = purpose.value if self.wraps_bundle else "root"
        self.new_id = derived_key_id(prefix, call.rotation_id, purpose)

    async def rows(self) -> list[RootKey]:
        async with self._store.read() as tx:
            return await self.rows_in(tx)

    async def rows_in(self, tx: Transaction) -> list[RootKey]:
        return [row.root for row in await tx.root_keys.all() if row.root.purpose is self.purpose]

    async def current_id(self) -> str:
        """The root that this process seals with; of a bundle, which needs no process, the current row."""
        if not self.wraps_bundle:
            return self._store.ring.current_root_id(KeyPurpose(self.purpose))
        return next(root.id for root in await self.rows() if root.state is RootState.CURRENT)

    async def is_up_to_date(self) -> bool:
        """Whether this process seals with the root that the rows say, where there are rows."""
        current = [root.id for root in await self.rows() if root.state is RootState.CURRENT]
        return not current or current == [await self.current_id()]

    async def count_left(self, tx: Transaction, root_id: str) -> int:
        return 0 if self.wraps_bundle else await tx.root_moves.count_left(self.sealing, root_id)

    def service(self, services: Sequence[BoundKeyService]) -> tuple[BoundKeyService | None, str]:
        """The service that wraps, if this worker's settings name it first, and the name of its key.

        While an installation moves, workers of before still have another, which wraps nothing more.
        """
        service = next(iter(services), None)
        known = "" if service is None else service.key_name(self.purpose)
        names = dict(zip(self._call.purposes, self._call.wrapped_by, strict=False))
        name = names.get(self.purpose, known)
        return (service if known == name else None), name

    async def announced(self, service: BoundKeyService) -> tuple[RootKey, bytes] | None:
        """The row of a new root, which the service has wrapped outside of any transaction; None: it is there.

        Raises Failure INVALID_REQUEST where roots lie in the key file, and as the service does.
        """
        roots = await self.rows()
        if any(root.id == self.new_id for root in roots):
            return None
        if not roots:
            why = f"the keys of {self.purpose} lie in the key file: keys rotate on its host adds a root"
            raise Failure(ErrorCode.INVALID_REQUEST, why)
        value = (
            bundle_bytes(self._store.ring.bundle_for(self.purpose))
            if self.wraps_bundle
            else new_sealing_key("root").reveal()
        )
        return await announced_root(service, self.purpose, self.new_id, value, self._call.begun_at)


class RootRotation(KeyRotation):
    """Of the call's purposes: each step is done for all of them before the next one."""

    def __init__(
        self, store: Store, call: KeyRotationCall, page_rows: int, services: Sequence[BoundKeyService]
    ) -> None:
        super().__init__(store, call, page_rows)
        self._services = services
        self._of = [_Roots(store, call, ServicePurpose(purpose)) for purpose in call.purposes]
        self._with_roots = [roots for roots in self._of if not roots.wraps_bundle]

    async def total(self) -> int:
        async with self._store.read() as tx:
            return sum([await tx.root_moves.count_all(roots.sealing) for roots in self._with_roots])

    async def prepare(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        if progress.step is RotationStep.ANNOUNCE:
            return await self._announce(progress)
        processes = await self._processes()
        waited_for = [
            process for roots in self._of for process in lacking(processes, roots.purpose, roots.new_id)
        ]
        return self._waiting(progress, waited_for) if waited_for else await self.following(progress)

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> int:
            stored = {row.root.id: row.root for row in await tx.root_keys.all()}
            made = [roots for roots in self._of if stored[roots.new_id].state is RootState.ANNOUNCED]
            for roots in made:
                await tx.root_keys.make_current(roots.new_id, tx.now)
            return len(made)

        progress = progress.__replace__(replaced=progress.replaced + await self.write(work))
        self._store.ring.when_outdated()
        for roots in self._of:
            if await roots.current_id() != roots.new_id:  # this process reads it in a moment
                return self.repeated(progress)
        return await self.following(progress)

    async def advance(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """As of every rotation, once this process seals with the roots that another has made current."""
        if progress.step in _MOVING and not all([await roots.is_up_to_date() for roots in self._of]):
            self._store.ring.when_outdated()
            return self.repeated(progress)
        return await super().advance(progress)

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        if not self._with_roots:
            return await self.following(progress)
        place = int(progress.after[0]) if progress.after else 0
        roots, behind = self._with_roots[place], progress.after[1:]
        root_id = await roots.current_id()

        def work(tx: Transaction) -> Awaitable[Moved]:
            return tx.root_moves.move(roots.sealing, root_id, behind, self._page_rows)

        moved = await self.write(work)
        progress = with_page(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=(str(place), *moved.after))
        if place + 1 < len(self._with_roots):
            return progress.__replace__(after=(str(place + 1),))
        return await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        currents = [(roots, await roots.current_id()) for roots in self._with_roots]
        async with self._store.read() as tx:
            left = [await roots.count_left(tx, root_id) for roots, root_id in currents]
        return await self.counted(progress, sum(left))

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """Retire the older roots, once no process may seal with one."""
        currents = [(roots, await roots.current_id()) for roots in self._of]
        processes = await self._processes()
        waited_for = [
            process
            for roots, root_id in currents
            for process in may_seal_with_another(processes, roots.purpose, root_id)
        ]
        if waited_for:
            return self._waiting(progress, waited_for)

        async def work(tx: Transaction) -> int:
            if any([await roots.count_left(tx, root_id) for roots, root_id in currents]):
                return -1
            older = [root for roots in self._of for root in await roots.rows_in(tx)]
            older = [root for root in older if root.state is RootState.OPEN]
            for root in older:
                await tx.root_keys.retire(root.id, tx.now)
                await self.record(tx, AuditAction.ROOT_RETIRED, root.id, {"rotation": self._call.rotation_id})
            return len(older)

        retired = await self.write(work)
        if retired < 0:
            return self.repeated(progress.__replace__(step=RotationStep.MOVE, zeros=0))
        self._store.ring.when_outdated()
        return await self.following(progress.__replace__(destroyed=progress.destroyed + retired, kept=0))

    async def _announce(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        for roots in self._of:
            service, name = roots.service(self._services)
            if service is None:
                waits_for = (f"a worker whose EVERGRANT_KEY_SERVICE has the key {name}",)
                return self.repeated(progress).__replace__(waits_for=waits_for)
            announced = await roots.announced(service)
            if announced is None:
                continue
            root, wrapped = announced

            async def work(tx: Transaction, root: RootKey = root, wrapped: bytes = wrapped) -> None:
                if await tx.root_keys.get(root.tenant, root.id) is None:
                    await tx.root_keys.add(root.__replace__(created_at=tx.now), wrapped)

            await self.write(work)
        self._store.ring.when_outdated()
        return await self.following(progress)

    async def _processes(self) -> list[Process]:
        async with self._store.read() as tx:
            return await tx.processes.all()

    def _waiting(self, progress: KeyRotationProgress, waited_for: list[Process]) -> KeyRotationProgress:
        """The step again in a while: these processes have to do something first."""
        names = (f"{process.role} {process.id} on {process.host}" for process in waited_for)
        return self.repeated(progress).__replace__(waits_for=tuple(dict.fromkeys(names))[:5])
