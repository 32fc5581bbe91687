"""How long a test waits for a condition: generous, since a busy machine is slow and success costs no wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE_S = 120.0

T = TypeVar("T")


async def eventually(read: Callable[[], Awaitable[T]], condition: Callable[[T], object] = bool) -> T:
    """Read again and again until the condition holds for what was read."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(found := await read()):
            await asyncio.sleep(0.05)
    return found
