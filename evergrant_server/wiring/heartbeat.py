"""A process writes every few seconds that it lives, which root keys it holds and seals with, and which
schema its code is written for."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from evergrant_server import __version__
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.crypto.root_keys import BUNDLE_OF_ROLE
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.store.database.schema import expected_version
from evergrant_server.store.rotation.processes import HEARTBEAT


class _Held(NamedTuple):
    roots: dict[str, list[str]]
    seals_with: dict[str, str]


class Heartbeat:
    """The row of this process. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._ring = store.in_pool(Pool.BACKGROUND), store.ring
        self._id, self._started_at = f"prc_{secrets.token_hex(12)}", clock.now()
        self._written: _Held | None = None
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write the row while the block runs, and its end with it."""
        self._ring.when_held = self._note_change  # a rotation waits for what is written here
        task = asyncio.create_task(self._run(), name="heartbeat")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(Failure):
                async with self._store.write() as tx:
                    await tx.processes.end(self._id)

    async def _run(self) -> None:
        while True:
            with suppress(Failure):  # while the store is away, nothing seals either
                await self.beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT.total_seconds()):
                    await self._changed.wait()

    async def beat(self) -> None:
        """Write it now. Raises Failure STORE_UNAVAILABLE."""
        ring = self._ring
        names = {"role": ring.role.value, "host": socket.gethostname(), "version": __version__}
        names["schema_version"] = expected_version()
        self._changed.clear()
        held = self._held()
        async with self._store.write() as tx:
            await tx.processes.beat(self._id, names, held.roots, held.seals_with, self._started_at)
            if ring.role is Role.WORKER:
                await tx.processes.prune()
        self._written = held

    def _note_change(self) -> None:
        if self._held() != self._written:
            self._changed.set()

    def _held(self) -> _Held:
        """By purpose: the roots, and the rows of what the role signs with."""
        ring, of_bundle = self._ring, BUNDLE_OF_ROLE[self._ring.role].value
        roots = {purpose.value: list(ids) for purpose, ids in ring.root_ids().items()}
        seals_with = {
            purpose.value: ring.current_root_id(purpose) for purpose, ids in ring.root_ids().items() if ids
        }
        roots[of_bundle] = list(ring.bundle_rows)
        if ring.bundle_rows:
            seals_with[of_bundle] = ring.bundle_rows[0]
        return _Held(roots, seals_with)
