"""Threads for clients that block: a few, each call bounded, and none that keeps the process from ending."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from evergrant_server.crypto.key_services.port import CALL_LIMIT_S, FailureReason, KeyServiceFailure

T = TypeVar("T")
_MOST = 4


class Threads:
    """At most four calls of one client at a time, each in a daemon thread.

    A call that outlasts its limit keeps its thread until the client gives up; callers behind it wait no
    longer than their own limit. Belongs to one event loop.
    """

    def __init__(self, limit_s: float = CALL_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._free = asyncio.Semaphore(_MOST)

    async def run(self, key: str, call: Callable[[], T]) -> T:
        """The call's result, or its exception. After the limit: KeyServiceFailure AWAY that names `key`."""
        try:
            async with asyncio.timeout(self._limit_s):
                await self._free.acquire()
                return await self._started(call)
        except TimeoutError:
            why = f"didn't answer within {self._limit_s:g} s"
            raise KeyServiceFailure(FailureReason.AWAY, key, why) from None

    def _started(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            except BaseException as raised:  # the caller's to judge
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, future, result, error)

        threading.Thread(target=work, name="key service", daemon=True).start()
        return future

    def _settle(self, future: "asyncio.Future[T]", result: T, error: BaseException | None) -> None:
        self._free.release()
        if future.done():  # its limit was over
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            future.set_exception(RuntimeError("the client raised StopIteration"))
        else:
            future.set_exception(error)
