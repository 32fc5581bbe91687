"""How a program with child processes ends after Ctrl-C: its clean-up is never cut short."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

INTERRUPTED = 130  # the exit status


def run_interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` and return its exit status, or INTERRUPTED.

    The first SIGINT or SIGTERM cancels it. Further ones are ignored, so that nothing cuts short
    the end of the child processes that it started.
    """

    async def run() -> int:
        task = asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            if not task.cancelling():
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, cancel)
        try:
            return await work
        except asyncio.CancelledError:
            return INTERRUPTED

    return asyncio.run(run())
