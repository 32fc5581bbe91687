"""How long an answer is waited for, by a process that may stand still meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

_STOOD_STILL_S = 0.5  # a timer that is later than that: the whole process was stopped
_A_MOMENT_S = 1.0


@contextmanager
def listening(longest_s: float) -> Iterator[None]:
    """Raises TimeoutError when what is in it takes longer than `longest_s` seconds.

    A process that was stopped (a paused machine, SIGSTOP) past the deadline finds the deadline and
    the answer at once when it goes on. It has a second more then, once, to read what has come: an
    answer to a single-use credential can't be asked for again.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + longest_s

    def over() -> None:
        nonlocal timer
        if timer.when() == due and loop.time() - due > _STOOD_STILL_S:
            timer = loop.call_later(_A_MOMENT_S, over)
        else:
            scope.cancel()

    timer = loop.call_at(due, over)
    with anyio.CancelScope() as scope:
        try:
            yield
        finally:
            timer.cancel()
    if scope.cancelled_caught:
        raise TimeoutError
