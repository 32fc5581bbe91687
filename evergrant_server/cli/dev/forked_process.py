"""A command of Evergrant that begins in a fork of `dev`, which has imported what the command needs.

The fork shares no memory that is written afterwards: keys are read after it, by each process for itself.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from evergrant_server.cli.process import ChildProcess, RunningChild
from evergrant_server.parent_process import end_with_parent

Main = Callable[[list[str]], NoReturn]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@cache
def can_fork() -> bool:
    """Whether the system has process file descriptors (pidfd_open(2)), by which a fork's end is noticed."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def import_services() -> None:
    """Import what API, worker and gateway need, and parse the catalogue, before they are forked."""
    if not can_fork():
        return
    gc.disable()  # imports make hardly any garbage
    import worker  # noqa: F401  # for the forks
    from providers.definition.registry import Registry

    Registry.load()  # each definition is kept parsed
    gc.freeze()  # a collection in a fork would copy the pages of all that
    gc.enable()


class ForkedProcess(ChildProcess):
    """A child process whose first start is a fork. A later one runs the command: `dev` may have threads then.

    So does the first where the end of a fork wouldn't be noticed.
    """

    def __init__(
        self, name: str, command: str, folder: Path, env: dict[str, str], main: Main, **limits: float
    ) -> None:
        """`main` is what `python -m evergrant_server` runs."""
        super().__init__(name, [sys.executable, "-m", "evergrant_server", command], folder, env, **limits)
        self._main, self._arguments, self._variables = main, [command], env
        self._may_fork = can_fork()

    async def _spawn(self, log: IO[bytes]) -> RunningChild:
        if not self._may_fork:
            return await super()._spawn(log)
        self._may_fork = False
        return _Fork(self._fork(log.fileno()))

    def _fork(self, log: int) -> int:
        sys.stdout.flush()
        dev = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._begin(dev, log, blocked)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid

    def _begin(self, dev: int, log: int, blocked: set[Any]) -> NoReturn:
        """In the fork: become what the command would be. Nothing of `dev` is left open, its lock least."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        end_with_parent(dev)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.update(self._variables)
        self._main(self._arguments)


class _Fork:
    """A forked process, as `asyncio` has those that it starts."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)
