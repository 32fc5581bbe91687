"""Tells Temporal that a worker lives while it waits for a provider, so that its death is noticed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from temporalio import activity

from evergrant_server.core.messages.connection import Message

_INTERVAL_S = 1.5  # well inside the heartbeat time-out of `workflows.activity_calls`


@asynccontextmanager
async def heartbeating(progress: Callable[[], Message] | None = None) -> AsyncIterator[None]:
    """Beat for as long as the block runs. A heartbeat carries nothing, or how far the work is."""

    async def beat() -> None:
        while True:
            activity.heartbeat(*([] if progress is None else [progress()]))
            await asyncio.sleep(_INTERVAL_S)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
