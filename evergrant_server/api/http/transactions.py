"""A change that is tried again when another one came first."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Store, Transaction

T = TypeVar("T")

ATTEMPTS = 4
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.05


async def run_transaction(
    store: Store, work: Callable[[Transaction], Awaitable[T]], *, tries: int = ATTEMPTS
) -> T:
    """Run `work` in a write transaction: whole or not at all, and again after a conflict.

    `work` reads what it decides by inside, so a second run sees what the first one lost to.
    Raises Failure STORE_CONFLICT after `tries`, and whatever `work` raises.
    """
    for attempt in range(1, tries + 1):
        try:
            async with store.write() as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_CONFLICT or attempt == tries:
                raise
        await asyncio.sleep(random.uniform(0, min(_FIRST_PAUSE_S * 2**attempt, _MAX_PAUSE_S)))
    raise AssertionError("unreachable")
