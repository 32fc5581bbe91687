"""A run that the operator cancels finishes its command, and is followed by a new run."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded_from_cancellation(run: Coroutine[Any, Any, T], cancel_requested: Callable[[], None]) -> T:
    """The result of `run`, which no cancellation reaches; each calls `cancel_requested` instead."""
    task = asyncio.create_task(run)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the run is being evicted from the worker's memory
                raise
            cancel_requested()
