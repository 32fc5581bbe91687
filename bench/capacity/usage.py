"""What processes have used: CPU seconds and resident memory, with their children (proc(5)); disk."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from evergrant_server.cli.process import ChildProcess

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


def pid_of(child: ChildProcess) -> int:
    return int(child.pid_file.read_text().split()[0])


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


def database_bytes(file: Path) -> int:
    """The pages of a SQLite database that are in use, those in its WAL too."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        pages, free, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size
