"""The processes of the proof: those of the product, which are killed and stopped, and those that look on."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.processes import python_module, running_process
from tests.fakes.platform.compose import ROOT

_LINE_LIMIT = 1 << 26


class Member:
    """An API, a gateway or a worker."""

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        env: Callable[[], dict[str, str]],
        port: int = 0,
        words: str = "worker ready",
    ) -> None:
        """`env` is asked at each start. One without a port serves once it has logged the `words`."""
        self.name, self.port = name, port
        self._module, self._folder, self._env = module, folder / name, env
        self._folder.mkdir(exist_ok=True)
        self._process = python_module(module, self._folder)
        self._words = "" if port else words
        self._starting = asyncio.Lock()
        self._starts: list[Any] = []  # kept: a context that is let go ends the process

    @property
    def pid(self) -> int:
        """0 while it doesn't run."""
        with suppress(OSError):
            return int(self._process.pid_file.read_text().split()[0])
        return 0

    async def start(self) -> None:
        """Return once it serves."""
        self._process = python_module(self._module, self._folder, env=self._env())
        self._starts.append(running_process(self._process, port=self.port, words=self._words))
        await self._starts[-1].__aenter__()

    async def stop(self) -> None:
        self.signal(signal.SIGCONT)
        await self._process.stop()

    def signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    async def kill(self) -> None:
        """SIGKILL it, and start it again."""
        async with self._starting:
            self.signal(signal.SIGKILL)
            await self._process.wait()
            await self.start()

    async def restart(self) -> None:
        """As an orchestrator does: SIGTERM, its end, another."""
        async with self._starting:
            await self._process.stop()
            await self.start()


class Onlooker:
    """A module of the proof as a process, which works until its standard input ends."""

    def __init__(
        self, module: str, env: Callable[[], dict[str, str]], order: dict[str, Any] | None = None
    ) -> None:
        """`env` is asked at each start."""
        self._module, self._env, self._order = module, env, order

    async def start(self, *, first_line: bool = False) -> None:
        """With `first_line` return once it has written one."""
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module),
            cwd=ROOT,
            env={**os.environ, **self._env()},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
        if self._order is not None:
            assert self._child.stdin is not None
            self._child.stdin.write(json.dumps(self._order).encode() + b"\n")
        if first_line:
            await self._line()

    async def end(self) -> dict[str, Any]:
        """What it has counted."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        counted = json.loads(await self._line())
        await self._child.wait()
        return counted

    async def _line(self) -> bytes:
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {await self._child.wait()}")
        return line
