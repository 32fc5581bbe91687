"""Single flight: callers with the same key at the same time share one call and its outcome."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """For threads. The first caller makes the call; the others wait for its result or exception."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Future[Result | None]] = {}
        self._lock = Lock()

    def run(self, key: Hashable, call: Callable[[], Result]) -> Result:
        while True:
            with self._lock:
                shared = self._running.get(key)
                is_first = shared is None
                if shared is None:
                    shared = self._running[key] = Future()
            if is_first:
                return self._call(key, shared, call)
            if (result := shared.result()) is not None:
                return result
            # The first caller was interrupted, which says nothing about this one's call.

    def _call(self, key: Hashable, shared: Future[Result | None], call: Callable[[], Result]) -> Result:
        try:
            result = call()
        except Exception as error:
            self._remove(key)
            shared.set_exception(error)
            raise
        except BaseException:
            self._remove(key)
            shared.set_result(None)
            raise
        self._remove(key)
        shared.set_result(result)
        return result

    def _remove(self, key: Hashable) -> None:
        with self._lock:
            del self._running[key]


class AsyncSingleFlight(Generic[Result]):
    """For tasks of one event loop. The call runs in its own task: cancelling a waiter doesn't cancel it."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Result]] = {}

    async def run(self, key: Hashable, call: Callable[[], Awaitable[Result]]) -> Result:
        task = self._running.get(key)
        if task is None:

            async def run_call() -> Result:
                return await call()

            task = self._running[key] = asyncio.create_task(run_call())
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    async def cancel_all(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, key: Hashable, task: asyncio.Task[Result]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio logs nothing when no waiter is left
