"""Waits for a condition instead of a number of seconds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")


class WaitTimedOut(RuntimeError):
    """The condition did not become true in time."""


async def wait_until(
    look: Callable[[], Awaitable[Found | None]], what: str, within_s: float, every_s: float = 0.1
) -> Found:
    """Call `look` until it returns something else than None. Raises WaitTimedOut."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(every_s)
    except TimeoutError:
        raise WaitTimedOut(f"waited {within_s:.0f} s for {what}") from None
