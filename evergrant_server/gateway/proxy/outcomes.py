"""How calls ended, for the audit log: gathered, and written a second later with one commit.

The record that a call is made is committed before it (`audit.lease_ledger`). A process that is killed loses
the outcomes of its last second: such calls have no second record.
"""

import asyncio
import logging
from collections import defaultdict

from evergrant_server import audit
from evergrant_server.core.audit import AuditEntry
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.gateway")

_EVERY_S = 1.0
_BATCH = 200
_MOST_WAITING = 50_000


class OutcomeLog:
    """The outcomes of one process, in its own shard of the audit log."""

    def __init__(self, store: Store, shard: str) -> None:
        self._store = store
        self._shard = shard
        self._waiting: list[AuditEntry] = []
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what waits."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    def add(self, entry: AuditEntry) -> None:
        if len(self._waiting) >= _MOST_WAITING:  # the store is away
            self._waiting.clear()
            log_event(log, logging.ERROR, LogEvent.OUTCOMES_LOST, f"{_MOST_WAITING} outcomes of calls")
        self._waiting.append(entry)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            await self._write()

    async def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        by_tenant: defaultdict[Tenant, list[AuditEntry]] = defaultdict(list)
        for entry in waiting:
            by_tenant[entry.tenant].append(entry)
        for entries in by_tenant.values():
            for first in range(0, len(entries), _BATCH):
                batch = entries[first : first + _BATCH]
                try:
                    async with self._store.write() as tx:
                        await audit.append_all(tx, batch, shard=self._shard)
                except Failure:
                    self._waiting += batch  # with the next ones
