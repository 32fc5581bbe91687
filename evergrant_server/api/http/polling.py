"""Waiting for a worker's news. The row is watched: API and workers share nothing else (ADR 0008)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_INTERVAL_S = 0.1


async def poll_until(look: Callable[[], Awaitable[T]], over: Callable[[T], bool], longest: float) -> T:
    """What `look` sees when that is the end of it, or what it saw last after `longest` seconds."""
    ends = asyncio.get_running_loop().time() + longest
    while True:
        seen = await look()
        if over(seen) or asyncio.get_running_loop().time() >= ends:
            return seen
        await asyncio.sleep(_POLL_INTERVAL_S)
