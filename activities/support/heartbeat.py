"""Heartbeats while an activity waits for a provider, so that Temporal notices a crashed worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from temporalio import activity

from evergrant_server.core.messages.base import Message

_INTERVAL_S = 1.5  # well inside the heartbeat time-out of `workflows.activity_calls`


@asynccontextmanager
async def heartbeating(progress: Callable[[], Message] | None = None) -> AsyncIterator[None]:
    """Heartbeat for as long as the block runs, with its `progress` if there is any."""

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
