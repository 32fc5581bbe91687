"""Cancelling a run from outside ends no life: what is under way is finished, and life goes on."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded_from_cancellation(life: Coroutine[Any, Any, T], asked: Callable[[], None]) -> T:
    """The result of `life`, which no cancellation of the run reaches; `asked` hears of each.

    No history of before holds a cancellation with anything behind it, so this needs no patch:
    such a run had ended with it.
    """
    task = asyncio.create_task(life)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the run is being dropped from the worker's memory
                raise
            asked()
