"""Where rotations wait before each page (`worker.py`), and who is killed meanwhile.

A step is known by the worker that is about to take it, never by a clock.
"""

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.rotation.members import Member

_INTO_THE_PAGE_S = 0.02  # at the most, from the gate to the SIGKILL


@dataclass(frozen=True)
class Passage:
    """A worker that is about to take a step of a rotation. `waits_for`: why the last pass went no further."""

    pid: int
    kind: str
    step: str | None
    waits_for: tuple[str, ...]
    passes: int


@dataclass
class Gate:
    """Every passage waits until `watch` has returned."""

    watch: Callable[[Passage], Awaitable[None]]
    times: dict[str, float] = field(default_factory=dict)  # of the rotation: the first passage of each step
    wrong: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def open(self, path: Path) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._pass, path)
        try:
            yield
        finally:
            server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = json.loads(await reader.readline())
        passage = Passage(**words | {"waits_for": tuple(words["waits_for"])})
        if passage.step is not None:
            self.times.setdefault(passage.step, time.monotonic())
        try:
            await self.watch(passage)
        except Exception as error:
            self.wrong.append(f"{passage.kind}, {passage.step}: {error!r}")
        finally:
            writer.close()

    def seconds(self, ended: float) -> dict[str, float]:
        """How long each step took."""
        steps = list(self.times)
        ends = [*(self.times[step] for step in steps[1:]), ended]
        return {step: end - self.times[step] for step, end in zip(steps, ends, strict=True)}


class Strikes:
    """A SIGKILL of each process in each step of a rotation, in an order of the seed.

    The worker that is at the gate dies there, or a moment later: within its page.
    """

    def __init__(
        self, members: list[Member], seed: int, steps: Collection[str], say: Callable[[str], None]
    ) -> None:
        """`steps`: in these alone; none: in each."""
        self._members, self._chance, self._say = members, random.Random(f"{seed} strikes"), say
        self._steps = steps
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.done: set[tuple[str, str, str]] = set()  # kind, step, process

    async def strike(self, passage: Passage) -> None:
        if passage.step is None or (self._steps and passage.step not in self._steps):
            return
        async with self._turn:
            left = [member for member in self._members if self._is_left(passage, member)]
            away = [member for member in left if member.pid != passage.pid]
            self._chance.shuffle(away)
            kept = [member for member in away if member.name.startswith("api")][:1]  # for the readers
            for group in ([member for member in away if member not in kept], kept):
                for member in group:
                    self._note(passage, member)
                await asyncio.gather(*(member.kill() for member in group))
            for member in left:
                if member not in away:
                    self._note(passage, member)
                    self._kill_at_work(member)

    async def over(self) -> None:
        """Return once whoever was killed runs again."""
        async with self._turn:
            tasks, self._tasks = self._tasks, []
            await asyncio.gather(*tasks)

    def _is_left(self, passage: Passage, member: Member) -> bool:
        return (passage.kind, passage.step, member.name) not in self.done

    def _note(self, passage: Passage, member: Member) -> None:
        self.done.add((passage.kind, str(passage.step), member.name))
        self._say(f"{passage.kind}, {passage.step}: SIGKILL of {member.name}")

    def _kill_at_work(self, member: Member) -> None:
        """Now, while it waits at the gate, or in a moment, within its page."""
        delay_s = self._chance.choice((0.0, self._chance.uniform(0, _INTO_THE_PAGE_S)))
        if not delay_s:
            member.signal(signal.SIGKILL)

        async def later() -> None:
            await asyncio.sleep(delay_s)
            await member.kill()

        self._tasks.append(asyncio.create_task(later()))
