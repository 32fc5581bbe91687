"""Write transactions that are repeated after a compare-and-set conflict."""

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
    """Run `work` in a write transaction, and again after a conflict.

    `work` reads its input inside the transaction, so that a repetition sees the conflicting write.
    Raises Failure STORE_CONFLICT after `tries`, and those of `work`.
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
