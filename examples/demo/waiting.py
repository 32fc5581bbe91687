"""Waiting for something to become true, never for a number of seconds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")


class WaitTimedOut(RuntimeError):
    """What was waited for did not become true in time."""


async def wait_until(
    look: Callable[[], Awaitable[Found | None]], what: str, within_s: float, every_s: float = 0.1
) -> Found:
    """Look again and again until there is something else than None. Raises NeverHappened."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(every_s)
    except TimeoutError:
        raise WaitTimedOut(f"waited {within_s:.0f} s for {what}") from None
