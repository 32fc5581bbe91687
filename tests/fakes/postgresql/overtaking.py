"""PostgreSQL: one command is overtaken by another between what it reads and what it writes of that."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

import pytest
from sqlalchemy import text

from evergrant_server.store import Store
from tests.fakes.patience import PATIENCE_S

T = TypeVar("T")
_WAITING = text(
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE NOT granted AND datname = current_database()"
)


class Overtaking(Generic[T]):
    """The other command: begun once the first one has read."""

    def __init__(self, store: Store, command: Callable[[], Coroutine[Any, Any, T]], context: Context) -> None:
        self._store, self._command, self._context = store, command, context
        self._task: asyncio.Task[T] | None = None

    async def begin(self) -> None:
        """Begin it once, and let it come to its end, or as far as the locks of others let it."""
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._command(), context=self._context)
        async with asyncio.timeout(PATIENCE_S):
            while not self._task.done() and not await self._waits():
                await asyncio.sleep(0.01)

    async def result(self) -> T:
        assert self._task is not None, "nothing was read"
        return await self._task

    async def _waits(self) -> bool:
        async with self._store.autocommit() as connection:
            return bool((await connection.execute(_WAITING)).scalar_one())


def overtake(
    patch: pytest.MonkeyPatch,
    store: Store,
    repository: type[Any],
    method: str,
    command: Callable[[], Coroutine[Any, Any, T]],
) -> Overtaking[T]:
    """Has `command` overtake the next one that calls this method: after the method's answer."""
    call: Callable[..., Awaitable[Any]] = getattr(repository, method)
    overtaking = Overtaking(store, command, copy_context())

    async def called(*of: Any, **more: Any) -> Any:
        answer = await call(*of, **more)
        await overtaking.begin()
        return answer

    patch.setattr(repository, method, called)
    return overtaking
