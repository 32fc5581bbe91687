"""A process writes every few seconds that it lives, and which root keys it holds and seals with."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from evergrant_server import __version__
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.store.rotation.processes import HEARTBEAT


class Heartbeat:
    """The row of this process. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._ring = store.in_pool(Pool.BACKGROUND), store.ring
        self._id, self._started_at = f"prc_{secrets.token_hex(12)}", clock.now()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write the row while the block runs, and its end with it."""
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
            await asyncio.sleep(HEARTBEAT.total_seconds())

    async def beat(self) -> None:
        """Write it now. Raises Failure STORE_UNAVAILABLE."""
        ring = self._ring
        names = {"role": ring.role.value, "host": socket.gethostname(), "version": __version__}
        roots = {purpose.value: list(ids) for purpose, ids in ring.root_ids().items()}
        seals_with = {
            purpose.value: ring.current_root_id(purpose) for purpose, ids in ring.root_ids().items() if ids
        }
        async with self._store.write() as tx:
            await tx.processes.beat(self._id, names, roots, seals_with, self._started_at)
            if ring.role is Role.WORKER:
                await tx.processes.prune()
