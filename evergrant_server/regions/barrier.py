"""The barrier: returns once the standby has everything that this server has committed before.

An empty logical message is committed with `synchronous_commit = on`, on connections that do nothing else: it
waits for the standby and holds no row's lock, and nothing else waits for it. PostgreSQL ends a wait that is
cancelled with a warning and no error, and without a standby to wait for it doesn't wait at all: both count as
a barrier that hasn't passed.
"""

import asyncio
from typing import Any

from evergrant_server.core.errors import Failure
from evergrant_server.store.database.engine import Pool, asyncpg_driver
from evergrant_server.store.store import Store

_WARNING = "01"  # the class of SQLSTATEs that are no errors
_AT_ONCE = 2  # while one waits for the round trip, the next gathers its callers
_BARRIER = (
    "SELECT current_setting('synchronous_standby_names')"
    " FROM pg_logical_emit_message(true, 'evergrant', ''::text)"
)


class NotConfirmed(Exception):
    """The standby hasn't confirmed, or there is none: what was committed is here alone, for all one knows."""


class Barrier:
    """One wait for all callers of a moment. Belongs to one event loop."""

    def __init__(self, store: Store, within_s: float) -> None:
        self._store, self._within_s = store.in_pool(Pool.BARRIER), within_s
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._next: asyncio.Task[None] | None = None  # it hasn't begun: it covers what is committed by now

    async def passed(self) -> None:
        """Return once the standby has what was committed before this call. Raises NotConfirmed."""
        if self._next is None:
            self._next = asyncio.create_task(self._begun(), name="barrier")
            self._next.add_done_callback(_read_exception)
        await asyncio.shield(self._next)

    async def _begun(self) -> None:
        async with self._turns:
            self._next = None
            try:
                async with asyncio.timeout(self._within_s):
                    await self._waited()
            except TimeoutError:
                raise NotConfirmed(f"no confirmation within {self._within_s:g} s") from None
            except Failure as failure:
                raise NotConfirmed(failure.detail) from None

    async def _waited(self) -> None:
        warnings: list[str] = []

        def note(_: Any, message: Any) -> None:
            if message.sqlstate.startswith(_WARNING):
                warnings.append(message.sqlstate)

        async with self._store.autocommit() as connection:
            driver = await asyncpg_driver(connection)
            driver.add_log_listener(note)
            try:
                standbys = await driver.fetchval(_BARRIER)
            finally:
                driver.remove_log_listener(note)
        if warnings:
            raise NotConfirmed(f"the wait was ended on the server ({', '.join(warnings)})")
        if not standbys:
            raise NotConfirmed("synchronous_standby_names is empty: the server waits for no standby")


def _read_exception(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        done.exception()  # every caller may have gone
