"""Single flight: callers who want the same at the same time share one call and its outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """For threads. The first caller makes the call; the others wait for what it gets, or raises."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, Future[Result | None]] = {}
        self._lock = Lock()

    def run(self, key: Hashable, call: Callable[[], Result]) -> Result:
        while True:
            with self._lock:
                shared = self._flying.get(key)
                mine = shared is None
                if shared is None:
                    shared = self._flying[key] = Future()
            if mine:
                return self._fly(key, shared, call)
            if (result := shared.result()) is not None:
                return result
            # the one who made the call was interrupted, which says nothing about ours

    def _fly(self, key: Hashable, shared: Future[Result | None], call: Callable[[], Result]) -> Result:
        try:
            result = call()
        except Exception as error:
            self._land(key)
            shared.set_exception(error)
            raise
        except BaseException:
            self._land(key)
            shared.set_result(None)
            raise
        self._land(key)
        shared.set_result(result)
        return result

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._flying[key]


class AsyncSingleFlight(Generic[Result]):
    """For tasks of one event loop. The call is a task of its own: a waiter that gives up ends only itself."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[Result]] = {}

    async def run(self, key: Hashable, call: Callable[[], Awaitable[Result]]) -> Result:
        task = self._flying.get(key)
        if task is None:

            async def fly() -> Result:
                return await call()

            task = self._flying[key] = asyncio.create_task(fly())
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    async def cancel_all(self) -> None:
        """End what is under way."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _landed(self, key: Hashable, task: asyncio.Task[Result]) -> None:
        self._flying.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also when everybody who waited for it has left
