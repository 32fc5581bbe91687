"""How far an import is: a bar on a terminal, elsewhere a line from time to time."""

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0

Advance = Callable[[int, int], None]


class _Rate(TextColumn):
    """Lines a second since the beginning."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0
        return Text(f"{task.fields['lines'] / elapsed:.0f} a second" if elapsed > 1 else "")


@contextmanager
def progress(source: BinaryIO) -> Generator[Advance]:
    """Yields what is called with the bytes and the lines that are done."""
    size = os.fstat(source.fileno()).st_size
    if not sys.stderr.isatty():
        yield _lines(size)
        return
    columns = (TextColumn("importing"), BarColumn(), TaskProgressColumn(), _Rate(""), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=size or None, lines=0)

        def advance(end: int, lines: int) -> None:
            bar.update(task, completed=end, lines=lines)

        yield advance


def _lines(size: int) -> Advance:
    started = last = time.monotonic()

    def advance(end: int, lines: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        rate = lines / (now - started)
        left = f", {(size - end) * (now - started) / end:.0f} s left" if size and end else ""
        print(f"evergrant: {lines} lines, {rate:.0f} a second{left}", file=sys.stderr, flush=True)

    return advance
