"""Ties a process to its parent, so that it doesn't outlive one that was killed. Linux only."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends, also by SIGKILL (prctl(2)).

    `parent` is the parent's pid: if that has ended already, this process ends at once. Async-signal-safe
    enough to run between fork and exec: it takes no lock.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_make() -> None:
    """As `end_with_parent`, where `make` started this process: a killed `make` sends no signal on."""
    if os.environ.get("MAKELEVEL"):
        end_with_parent(os.getppid())
