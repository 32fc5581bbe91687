"""What processes have used: CPU seconds and resident memory, with their children (proc(5))."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """CPU in seconds since the process began, resident memory in MiB."""

    cpu: float
    memory: float


def usage_of(pid: int) -> Usage:
    """Of the process and its children."""
    numbers = [pid, *_descendants(pid)]
    return Usage(sum(map(_cpu, numbers)), sum(map(_resident, numbers)))


def _descendants(pid: int) -> list[int]:
    children = [
        int(number)
        for listed in Path(f"/proc/{pid}/task").glob("*/children")
        for number in listed.read_text().split()
    ]
    return [*children, *(below for child in children for below in _descendants(child))]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB
