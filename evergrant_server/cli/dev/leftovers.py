"""What an earlier `dev` left behind: processes that outlive it by a while, and whether it runs still.

Each child's pid file has its pid and start time. Only a process with both is the one that `dev` started: its
pid may have become another's since.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evergrant_server.cli.process import WORKER_STOP_LIMIT_S, started_at
from evergrant_server.settings import BadSettings

_LOCK = "dev.lock"


@dataclass(frozen=True)
class Leftover:
    """A process of an earlier `dev` that runs without it."""

    name: str
    pid: int
    started: int

    @property
    def runs(self) -> bool:
        return started_at(self.pid) == self.started

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped by a signal, and waits for another one (proc(5))."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state in "Tt"


@contextmanager
def only_dev_of(folder: Path) -> Iterator[None]:
    """Hold the data folder. Raises BadSettings when a running `dev` holds it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadSettings(
                f"EVERGRANT_DATA_DIR: Evergrant runs with {folder} already (process {running_dev(folder)}); "
                "use that one, or stop it with Ctrl-C in its terminal; or name another folder"
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def running_dev(folder: Path) -> int | None:
    """The pid of the `dev` that runs with this data folder; None when there is none."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 20) or b"0")
    finally:
        os.close(descriptor)
    return None


def recorded_processes(folder: Path) -> list[Leftover]:
    """The processes that pid files name and that run."""
    recorded: list[Leftover] = []
    for file in sorted(folder.glob("*.pid")):
        with suppress(OSError, ValueError):
            pid, started = map(int, file.read_text().split())
            recorded.append(Leftover(file.stem, pid, started))
    return [process for process in recorded if process.runs]


async def end_leftovers(folder: Path, say: Callable[[str], None]) -> None:
    """End the processes of a `dev` that was killed, as it would have. Hold the data folder meanwhile."""
    leftovers = recorded_processes(folder)
    for process in leftovers:
        say(f"ending {process.name}, process {process.pid}, which an earlier start left behind")
        _send(process, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(WORKER_STOP_LIMIT_S):
            while any(process.runs for process in leftovers):
                await asyncio.sleep(0.05)
    for process in leftovers:
        _send(process, signal.SIGKILL)


def _send(process: Leftover, number: signal.Signals) -> None:
    """Signal a process that runs; SIGKILL goes to its whole session."""
    with suppress(ProcessLookupError, PermissionError):
        if process.runs:
            (os.killpg if number is signal.SIGKILL else os.kill)(process.pid, number)
