"""The audit records of refused leases and tokens: the first at once, then one for a minute's repetitions.

A caller that retries in a loop would otherwise write to the tenant's main chain with every call.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from evergrant_server import audit
from evergrant_server.core.audit import AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store

WINDOW_S = 60.0


class _Kind(NamedTuple):
    """What refusals are counted together by."""

    tenant: Tenant
    app_id: str
    object: str
    code: str


@dataclass
class _Repetitions:
    last: AuditEntry
    count: int = 0


class RefusalLog:
    """The refusals of one process. Best effort: no token left, so no record is required."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[_Kind, _Repetitions] = {}
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def record(self, entry: AuditEntry) -> None:
        """Record a refusal, or count it if the same app met the same at the same connection already."""
        app_id, code = str(entry.detail["app"]), str(entry.detail["code"])
        # the caller names what isn't found: all of it is one kind
        object = app_id if code == ErrorCode.NOT_FOUND else entry.object
        kind = _Kind(entry.tenant, app_id, object, code)
        seen = self._seen.get(kind)
        if seen is not None:
            seen.last, seen.count = entry, seen.count + 1
            return
        self._seen[kind] = _Repetitions(entry)
        if self._task is None:
            self._task = asyncio.create_task(self._record_repetitions())
        await self._append(entry)

    async def stop(self) -> None:
        """Record what was counted."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _record_repetitions(self) -> None:
        while self._seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(WINDOW_S):
                    await self._stopping.wait()
            seen, self._seen = self._seen, {}
            for it in seen.values():
                if it.count:
                    detail = {**it.last.detail, "repeated": it.count}
                    await self._append(it.last.__replace__(detail=detail))
        self._task = None

    async def _append(self, entry: AuditEntry) -> None:
        with suppress(Failure):  # it is refused even if that can't be recorded
            async with self._store.write() as tx:
                await audit.append(tx, entry)
