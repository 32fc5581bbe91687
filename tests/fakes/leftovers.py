"""Ends every process of a test run once the run is over, however it ended.

A run marks its environment, and every server, worker and browser that it starts inherits the mark.
A watcher in a session of its own waits for the run's end of a pipe to close and then kills what still
carries the mark: an interrupt, a kill and a crash leave no process behind. Linux only: elsewhere the
fixtures end what they started.

python -m tests.fakes.leftovers MARK
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "TEST_RUN_OF_EVERGRANT"
_ROOT = Path(__file__).parents[2]
_PROC = Path("/proc")
_TO_END_S = 3.0  # between SIGTERM and SIGKILL
_watchers: list[
    tuple[subprocess.Popen[bytes], int]
] = []  # with our end of its pipe, open until this process ends


def watch() -> None:
    """Mark this process's environment and start the watcher. A second call changes nothing."""
    if _watchers or not _PROC.is_dir():
        return
    mark = os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    reading, writing = os.pipe()
    watcher = subprocess.Popen(
        [sys.executable, "-I", __file__, mark],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        cwd=_ROOT,
        start_new_session=True,  # a Ctrl-C for the tests is not one for the watcher
        env={name: value for name, value in os.environ.items() if name != MARK},
    )
    os.close(reading)
    _watchers.append((watcher, writing))


def marked(mark: str) -> list[int]:
    """The processes whose environment carries the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def end(mark: str) -> None:
    """Ask each marked process to end, and kill what doesn't."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
        until = time.monotonic() + _TO_END_S
        while marked(mark) and time.monotonic() < until:
            time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(sys.argv[1])
