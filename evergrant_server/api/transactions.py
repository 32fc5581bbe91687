"""A change that is tried again when another one came first."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from evergrant_server.core.errors import Code, Failure
from evergrant_server.store import Store, Tx

T = TypeVar("T")

_TRIES = 4


async def committed(store: Store, work: Callable[[Tx], Awaitable[T]]) -> T:
    """Run `work` in a write transaction: whole or not at all, and again after a conflict.

    `work` reads what it decides by inside, so a second run sees what the first one lost to.
    Raises Failure STORE_CONFLICT after four tries, and whatever `work` raises.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            async with store.write() as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code is not Code.STORE_CONFLICT or attempt == _TRIES:
                raise
    raise AssertionError("unreachable")
