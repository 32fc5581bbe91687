"""Polls a row until a worker has changed it: API and workers share only the store (ADR 0008)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_INTERVAL_S = 0.1


async def poll_until(read: Callable[[], Awaitable[T]], done: Callable[[T], bool], longest: float) -> T:
    """The first value of `read` that is `done`, or the last one after `longest` seconds."""
    ends = asyncio.get_running_loop().time() + longest
    while True:
        value = await read()
        if done(value) or asyncio.get_running_loop().time() >= ends:
            return value
        await asyncio.sleep(_POLL_INTERVAL_S)
