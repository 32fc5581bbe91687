"""An interrupted command finishes its clean-up, however often the operator presses Ctrl-C."""

import asyncio
import os
import signal

import pytest

from examples.demo.interruption import INTERRUPTED, run_interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_interrupt_the_clean_up(number: signal.Signals) -> None:
    cleaned_up: list[bool] = []

    async def work() -> int:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(10)
        finally:
            for _ in range(2):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
            cleaned_up.append(True)
        return 0

    assert run_interruptible(work()) == INTERRUPTED
    assert cleaned_up == [True]


def test_the_status_of_uninterrupted_work_is_returned() -> None:
    async def work() -> int:
        return 3

    assert run_interruptible(work()) == 3
