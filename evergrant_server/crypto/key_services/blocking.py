"""Threads for clients that block: a few, each call bounded, and none that keeps the process from ending."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from evergrant_server.crypto.key_services.port import (
    CALL_LIMIT_S,
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
    ServiceUrl,
)

T = TypeVar("T")
_MOST = 4
_LONGEST = 300  # characters of a client's own words
_VERBS = {
    FailureReason.AWAY: "isn't to be had now",
    FailureReason.DENIED: "is refused to this process",
    FailureReason.GONE: "can't be used",
    FailureReason.BROKEN: "didn't wrap this value, or it was altered",
}


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
            with suppress(RuntimeError):  # the loop is closed, and no caller waits
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


class BlockingKeyService(ABC):
    """A key service whose client blocks: a subclass calls the client, and sorts what the client raises."""

    def __init__(self, url: ServiceUrl) -> None:
        self._url = url
        self._threads = Threads(url.limit_s)

    def key_name(self, purpose: ServicePurpose) -> str:
        return f"{self._url.scheme}:{self._url.of(purpose)}"

    async def wrap(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        return await self._run(purpose, lambda: self.wrap_now(purpose, key, context))

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        return await self._run(purpose, lambda: self.unwrap_now(purpose, wrapped, context), opens=True)

    async def describe(self, purpose: ServicePurpose) -> KeyDescription:
        return await self._run(purpose, lambda: self.describe_now(purpose))

    async def close(self) -> None:
        self.close_now()

    @abstractmethod
    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes: ...

    @abstractmethod
    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes: ...

    @abstractmethod
    def describe_now(self, purpose: ServicePurpose) -> KeyDescription: ...

    @abstractmethod
    def close_now(self) -> None: ...

    @abstractmethod
    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        """What ends an error of the client; None for an error that it isn't known to raise.

        DENIED and GONE are answers of the service alone: they end at once what a process holds. Credentials
        that can't be read or fetched are AWAY. `opens`: the call was to unwrap, so a request that the service
        refuses to read is the value's fault.
        """

    def words_of(self, error: Exception) -> str:
        """What the client says of its error, without secrets."""
        return str(error)

    async def _run(self, purpose: ServicePurpose, call: Callable[[], T], opens: bool = False) -> T:
        name = self.key_name(purpose)

        def sorted_call() -> T:
            try:
                return call()
            except KeyServiceFailure:
                raise
            except Exception as error:
                reason = self.reason_of(error, opens)
                if reason is None:
                    raise
                raise KeyServiceFailure(
                    reason, name, f"{_VERBS[reason]}: {_shortened(self.words_of(error))}"
                ) from None

        return await self._threads.run(name, sorted_call)


def _shortened(text: str) -> str:
    """One line of at most 300 printable characters, without a full stop."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(line.split())[:_LONGEST].removesuffix(".")
